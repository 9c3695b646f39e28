"""A checkpoint of Podman that asks for more of a host than its agent gives is refused."""

from __future__ import annotations

import copy
import io
import json
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from relocation.test_criu_images import credentials, encode

from quicferry.cli import main
from quicferry.relocation.container.engines.podman_facts import Archive, Image
from quicferry.relocation.container.engines.podman_rights import CAPABILITIES, Given, check
from quicferry.relocation.errors import EngineError

IDENTITY = "ab" * 32
STORAGE = Path("/var/lib/containers/storage")
GIVEN = Given("61000:61000", Path("/run/quicferry/site"), (Path("/srv/data"),), STORAGE)
SHM = f"{STORAGE}/overlay-containers/{IDENTITY}/userdata/shm"
HOSTS = f"/run/containers/storage/overlay-containers/{IDENTITY}/userdata/hosts"
CONFIG: dict[str, Any] = {"id": IDENTITY, "name": "site", "rootfsImageName": "localhost/site:1"}
SPEC: dict[str, Any] = {
    "process": {
        "user": {"uid": 61000, "gid": 61000},
        "capabilities": {"bounding": ["CAP_NET_BIND_SERVICE"], "effective": ["CAP_IPC_LOCK"]},
    },
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
        {"destination": "/dev/shm", "type": "bind", "source": SHM, "options": ["bind"]},
        {"destination": "/etc/hosts", "type": "bind", "source": HOSTS, "options": ["bind"]},
        {
            "destination": "/run/quicferry",
            "type": "bind",
            "source": "/run/quicferry/site",
            "options": ["rbind"],
        },
    ],
    "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "cgroup")]},
}

Change = Callable[[dict[str, Any], dict[str, Any]], None]


def changed(change: Change) -> tuple[dict[str, Any], dict[str, Any]]:
    config, spec = copy.deepcopy(CONFIG), copy.deepcopy(SPEC)
    change(config, spec)
    return config, spec


def mounts(source: str, at: str = "/mnt", kind: str = "bind", **more: Any) -> Change:
    mount = {"destination": at, "type": kind, "source": source, **more}
    return lambda config, spec: spec["mounts"].append(mount)


def user(uid: int, gid: int = 61000, further: tuple[int, ...] = ()) -> Change:
    content = {"uid": uid, "gid": gid, "additionalGids": list(further)}
    return lambda config, spec: spec["process"].update(user=content)


def capable(name: str, kind: str = "bounding") -> Change:
    return lambda config, spec: spec["process"]["capabilities"].update({kind: [name]})


def socket_in(directory: str) -> Change:
    return lambda config, spec: spec["mounts"][-1].update(source=directory)


def test_what_the_host_gives_is_allowed() -> None:
    rights = check(CONFIG, SPEC, GIVEN)
    assert (rights.user, rights.groups) == (61000, (61000,))
    assert rights.capabilities == {"CAP_NET_BIND_SERVICE", "CAP_IPC_LOCK"}


def test_what_podman_has_written() -> None:
    """Of a container that was started by the command that `quicferry image` prints (5.4.2)."""
    recorded = Path(__file__).parent / "recorded" / "podman-spec.json"
    spec = json.loads(recorded.read_text())
    identity = "fd3eca230adc88b951bcc0d697e8f96e8ddb2e75ee839481ad46929a17fc1440"
    given = Given("61000:61000", GIVEN.directory, (), STORAGE)
    rights = check({"id": identity}, spec, given)
    assert (rights.user, rights.is_filtered) == (61000, True)
    with pytest.raises(EngineError, match="--allow-mount /run/containers"):
        check({"id": IDENTITY}, spec, given)


@pytest.mark.parametrize(
    "change",
    [
        mounts("/srv/data"),
        mounts("tmpfs", kind="tmpfs"),
        mounts("cgroup", kind="cgroup"),
        *map(capable, sorted(CAPABILITIES)),
        lambda config, spec: spec.update(hooks={"prestart": []}),
    ],
)
def test_what_else_is_allowed(change: Change) -> None:
    check(*changed(change), GIVEN)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (mounts("/"), "--allow-mount /"),
        (mounts("/etc"), "--allow-mount /etc"),
        (mounts("/srv"), "--allow-mount /srv"),
        (mounts("/srv/data/below"), "--allow-mount"),
        (mounts("/srv/data/../../etc"), r"mounts /srv/data/\.\./\.\./etc at /mnt"),
        (mounts(f"/home/{IDENTITY}"), "--allow-mount"),
        (mounts(f"{STORAGE}/overlay-containers/{'cd' * 32}/userdata"), "--allow-mount"),
        (mounts(f"{STORAGE}/{IDENTITY}/../../../../../etc"), "mounts"),
        (mounts("etc"), "mounts etc at"),
        (mounts("/etc", kind="none", options=["rbind"]), "--allow-mount /etc"),
        (mounts("/etc", kind="tmpfs", options=["bind"]), "--allow-mount /etc"),
        (mounts("/etc", kind=""), "--allow-mount /etc"),
        (mounts("/dev/sda1", kind="ext4"), "type ext4"),
        (mounts("overlay", kind="overlay"), "type overlay"),
        (socket_in("/run/quicferry/other"), "has its socket in /run/quicferry/other"),
        (socket_in("/etc"), "has its socket in /etc"),
        (mounts("/etc", at="/run/quicferry"), "has its socket in /etc"),
        (user(0), "user 0"),
        (user(61001), "user 61001"),
        (user(61000, 0), "groups 0"),
        (user(61000, 61000, (0,)), "groups 61000, 0"),
        (capable("CAP_SYS_ADMIN"), "CAP_SYS_ADMIN"),
        (capable("CAP_SYS_PTRACE", "ambient"), "CAP_SYS_PTRACE"),
        (lambda config, spec: config.update(privileged=True), "is privileged"),
        (lambda config, spec: config.update(rootfs="/"), "as its root file system"),
        (lambda config, spec: config.update(pod="x"), "shares what it has"),
        (lambda config, spec: config.update(userNsCtr="x"), "shares what it has"),
        (lambda config, spec: spec.update(hooks={"prestart": [{"path": "/bin/sh"}]}), "hooks"),
        (lambda config, spec: spec["linux"].update(devices=[{"path": "/dev/sda"}]), "devices"),
        (lambda config, spec: spec["linux"]["namespaces"].pop(0), "with the host: pid"),
        (
            lambda config, spec: spec["linux"]["namespaces"][3].update(path="/proc/1/ns/mnt"),
            "with the host: mount",
        ),
    ],
)
def test_what_is_refused(change: Change, problem: str) -> None:
    with pytest.raises(EngineError, match=problem):
        check(*changed(change), GIVEN)


@pytest.mark.parametrize(
    ("image", "change", "may"),
    [
        ("", user(0, 0), True),
        ("root", user(61000), True),
        ("0", user(0, 0, (10,)), True),
        ("www", user(33), True),
        ("www", user(0), False),
        ("33", user(33), True),
        ("33", user(34), False),
        ("33:33", user(33, 0), False),
    ],
)
def test_the_user_of_the_image(image: str, change: Change, may: bool) -> None:
    given = Given(image, GIVEN.directory, GIVEN.mounts, STORAGE)
    if may:
        check(*changed(change), given)
    else:
        with pytest.raises(EngineError, match="is to run"):
            check(*changed(change), given)


def test_the_user_is_read_of_the_image() -> None:
    found = [{"Id": "1", "RepoTags": ["a"], "Config": {"User": "61000:61000", "Cmd": ["serve"]}}]
    assert Image.parse(json.dumps(found)).user == "61000:61000"
    assert Image.parse(json.dumps([{"Id": "1", "RepoTags": None, "Config": None}])).user == ""


# The archive


def image_of(creds: Any) -> bytes:
    core = encode({1: 1, 3: {1: 1}, 5: {1: 1, 10: creds}})
    return struct.pack("<III", 0x54564319, 0x55053847, len(core)) + core


def archive(path: Path, *more: tuple[str, bytes], spec: Any = SPEC, link: str = "") -> Path:
    members = [
        ("config.dump", json.dumps(CONFIG).encode()),
        ("spec.dump", json.dumps(spec).encode()),
        ("checkpoint/core-1.img", image_of(credentials())),
        *more,
    ]
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        if link:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc"
            tar.addfile(member)
    return path


def attempt(path: Path) -> None:
    Archive.read(path).check(path, GIVEN)


def test_an_archive_that_asks_for_no_more(tmp_path: Path) -> None:
    attempt(archive(tmp_path / "a.tar", ("checkpoint/pages-1.img", bytes(5000)), ("x", b"")))


def test_a_process_in_an_archive(tmp_path: Path) -> None:
    root = image_of(credentials(user=0))
    with pytest.raises(EngineError, match="would be of user 0 by its image"):
        attempt(archive(tmp_path / "a.tar", ("checkpoint/core-7.img", root)))
    able = image_of(credentials(capabilities=1 << 21))
    with pytest.raises(EngineError, match="CAP_SYS_ADMIN"):
        attempt(archive(tmp_path / "a.tar", ("checkpoint/core-7.img", able)))


@pytest.mark.parametrize(
    "name",
    [
        *("config.dump", "./config.dump", "x/../spec.dump", "checkpoint/core-1.img"),
        *("./checkpoint/core-9.img", "checkpoint//core-9.img"),
    ],
)
def test_what_is_looked_at_is_what_podman_reads(tmp_path: Path, name: str) -> None:
    with pytest.raises(EngineError, match="no checkpoint of Podman"):
        attempt(archive(tmp_path / "a.tar", (name, b"{}")))


@pytest.mark.parametrize("name", ["checkpoint", "checkpoint/core-2.img", "./config.dump"])
def test_a_link_in_an_archive(tmp_path: Path, name: str) -> None:
    with pytest.raises(EngineError, match="no checkpoint of Podman"):
        attempt(archive(tmp_path / "a.tar", link=name))


@pytest.mark.parametrize("part", ["linux", "process"])
def test_a_specification_without_a_part(tmp_path: Path, part: str) -> None:
    spec = {name: value for name, value in SPEC.items() if name != part}
    with pytest.raises(EngineError, match="no checkpoint of Podman"):
        attempt(archive(tmp_path / "a.tar", spec=spec))


def test_mounts_are_for_podman(tmp_path: Path) -> None:
    common = ["--container", "site", "--identity", str(tmp_path), "--allow-mount", str(tmp_path)]
    bundle = ["agent", "receive", "--engine", "runc", "--bundle", str(tmp_path), *common]
    done = CliRunner().invoke(main, bundle)
    assert done.exit_code == 2
    assert "--allow-mount is for podman" in done.output
