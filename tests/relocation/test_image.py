"""What containers are made of: the configuration, the digest, and what is refused."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quicferry.protocol import Address
from quicferry.relocation.container.engines.criu import CONFIGURATION_ANNOTATION
from quicferry.relocation.container.engines.engine import IMAGE_ANNOTATION
from quicferry.relocation.container.image import (
    Application,
    Bundle,
    ImageError,
    PodmanImage,
    make_bundle,
    make_podman_image,
)
from quicferry.relocation.container.image.application import NOBODY, ROOT
from quicferry.relocation.container.image.bundle import check_name
from quicferry.relocation.container.image.debian import find_mirror
from quicferry.relocation.container.image.digest import digest
from quicferry.relocation.container.image.oci import make_annotations, make_config
from quicferry.relocation.container.image.root import Python, fill_root

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make an image")
PYTHON = "/usr/bin/python3"
SITE = Application("site:app", source=Path("/home/site"), user=NOBODY)


def quiet(_: str) -> None:
    pass


def mount_at(config: dict[str, Any], destination: str) -> dict[str, Any]:
    (found,) = (mount for mount in config["mounts"] if mount["destination"] == destination)
    assert isinstance(found, dict)
    return found


class TestConfiguration:
    def test_least_privilege(self) -> None:
        config = make_config(SITE, PYTHON, "site")
        process = config["process"]
        assert process["user"] == {"uid": NOBODY, "gid": NOBODY}
        assert process["noNewPrivileges"] is True
        assert {tuple(names) for names in process["capabilities"].values()} == {
            ("CAP_NET_BIND_SERVICE", "CAP_IPC_LOCK")
        }
        assert config["root"] == {"path": "rootfs", "readonly": True}
        assert config["linux"]["resources"] == {
            "devices": [{"allow": False, "access": "rwm"}],
            "pids": {"limit": SITE.processes},
            "memory": {"limit": SITE.memory << 20},
        }
        assert "/proc/kcore" in config["linux"]["maskedPaths"]
        assert "/proc/sys" in config["linux"]["readonlyPaths"]

    def test_without_limits(self) -> None:
        site = replace(SITE, memory=0, processes=0)
        resources = make_config(site, PYTHON, "site")["linux"]["resources"]
        assert list(resources) == ["devices"]
        made = PodmanImage("localhost/site:latest", "site", "sha256:00", NOBODY, 0, 0)
        assert "--pids-limit=0" in made.command
        assert not [each for each in made.command if each.startswith("--memory")]

    @pytest.mark.parametrize(
        "name", ["mount", "unshare", "setns", "ptrace", "bpf", "init_module", "io_uring_setup"]
    )
    def test_system_calls_that_lead_out_are_refused(self, name: str) -> None:
        rules = make_config(SITE, PYTHON, "site")["linux"]["seccomp"]["syscalls"]
        (rule,) = (each for each in rules if name in each["names"])
        assert (rule["action"], rule["errnoRet"]) == ("SCMP_ACT_ERRNO", errno.EPERM)
        assert "args" not in rule

    def test_no_namespace_is_made_in_any_way(self) -> None:
        """By clone(2) none, and clone3(2) is not there, so that libraries use the other."""
        rules = make_config(SITE, PYTHON, "site")["linux"]["seccomp"]["syscalls"]
        (clone3,) = (each for each in rules if "clone3" in each["names"])
        assert clone3["errnoRet"] == errno.ENOSYS
        refused = [each["args"][0] for each in rules if "clone" in each["names"]]
        assert all(each["value"] == each["valueTwo"] for each in refused)
        flags = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
        assert {each["value"] for each in refused} == set(flags), "see linux/sched.h"

    def test_it_has_the_hosts_network_and_nothing_else_of_the_host(self) -> None:
        config = make_config(SITE, PYTHON, "site")
        namespaces = {each["type"] for each in config["linux"]["namespaces"]}
        assert namespaces == {"pid", "mount", "ipc", "uts", "cgroup"}
        destinations = {mount["destination"] for mount in config["mounts"]}
        assert not {each for each in destinations if each.startswith("/sys")}
        bound = [mount for mount in config["mounts"] if mount["type"] == "bind"]
        assert [(each["source"], each["destination"]) for each in bound] == [
            ("/run/quicferry/site", "/run/quicferry")
        ]

    def test_the_log_can_be_written_and_moves_along(self) -> None:
        run = mount_at(make_config(SITE, PYTHON, "site"), "/run")
        assert run["type"] == "tmpfs"
        assert {"mode=1777", "nosuid"} <= set(run["options"])

    def test_the_server_is_started_in_its_folder_with_its_options(self) -> None:
        application = Application(
            "site:app",
            source=Path("/home/site"),
            certificate=Path("/home/certificate.pem"),
            key=Path("/home/key.pem"),
            bind=Address.parse("[::]:443"),
            options=("--retry",),
        )
        process = make_config(application, PYTHON, "site")["process"]
        assert process["cwd"] == "/srv/app"
        assert process["args"][4:] == [
            *(PYTHON, "-m", "quicferry.cli", "serve", "site:app"),
            *("--bind", "[::]:443", "--socket", "/run/quicferry/server.sock"),
            *("--cert", "/etc/quicferry/certificate.pem", "--key", "/etc/quicferry/key.pem"),
            "--retry",
        ]
        assert "PYTHONPATH=/opt/quicferry" in process["env"]

    def test_a_shell_takes_nothing_of_the_command_for_its_own(self) -> None:
        hostile = ("$(touch /dev/full)", "; exit 7", "a  b", "'\"")
        command = Application("a:b", options=hostile).command("/bin/echo")
        done = subprocess.run(command, capture_output=True, timeout=10, check=True)
        assert done.stdout.decode().rstrip("\n").endswith(" ".join(hostile))
        assert done.stderr == b""

    def test_the_annotations_are_those_of_the_engine(self) -> None:
        assert make_annotations("site", "sha256:00") == {
            IMAGE_ANNOTATION: "sha256:00",
            CONFIGURATION_ANNOTATION: "/run/quicferry/site.criu.conf",
        }

    def test_podman_is_told_the_same(self) -> None:
        made = PodmanImage("localhost/site:latest", "site", "sha256:00", NOBODY, 512 << 20, 7)
        assert made.command[-1] == "localhost/site:latest"
        assert {
            "--network=host",
            "--read-only",
            "--cap-drop=all",
            "--cap-add=CAP_NET_BIND_SERVICE",
            "--cap-add=CAP_IPC_LOCK",
            "--security-opt=no-new-privileges",
            "--pids-limit=7",
            f"--memory={512 << 20}b",
            "--volume=/run/quicferry/site:/run/quicferry",
            f"--annotation={IMAGE_ANNOTATION}=sha256:00",
        } <= set(made.command)


class TestDigest:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        root = tmp_path / "root"
        (root / "usr/bin").mkdir(parents=True)
        (root / "usr/bin/tool").write_text("content")
        (root / "bin").symlink_to("usr/bin")
        return root

    def test_it_is_the_same_for_a_copy(self, tree: Path, tmp_path: Path) -> None:
        first = digest(tree, {"args": ["a"]})
        copy = tmp_path / "copy"
        shutil.copytree(tree, copy, symlinks=True)
        os.utime(copy / "usr/bin/tool", (1, 1))
        assert digest(copy, {"args": ["a"]}) == first
        assert first.startswith("sha256:")
        assert len(first) == len("sha256:") + 64

    @pytest.mark.parametrize(
        "change",
        [
            lambda root: (root / "usr/bin/tool").write_text("Content"),
            lambda root: (root / "usr/bin/tool").chmod(0o4755),
            lambda root: (root / "usr/bin/tool").rename(root / "usr/bin/other"),
            lambda root: (root / "usr/bin/tool").rename(root / "usr/tool"),
            lambda root: (root / "usr/empty").mkdir(),
            lambda root: ((root / "bin").unlink(), (root / "bin").symlink_to("usr")),
            lambda root: os.mkfifo(root / "usr/fifo"),
        ],
        ids=["content", "mode", "name", "place", "folder", "link", "fifo"],
    )
    def test_it_is_another_after_a_change(self, tree: Path, change: Any) -> None:
        first = digest(tree, {})
        change(tree)
        assert digest(tree, {}) != first

    @needs_root
    def test_the_owner_counts(self, tree: Path) -> None:
        first = digest(tree, {})
        os.chown(tree / "usr/bin/tool", NOBODY, NOBODY)
        assert digest(tree, {}) != first

    def test_what_is_run_counts(self, tree: Path) -> None:
        assert digest(tree, {"args": ["a"]}) != digest(tree, {"args": ["b"]})


class TestRefused:
    @pytest.mark.parametrize("name", ["", "-x", "a/b", "..", "a b", "a" * 64, "ü", "agent"])
    def test_names(self, name: str) -> None:
        with pytest.raises(ImageError, match="cannot be the name"):
            check_name(name)

    @pytest.mark.parametrize("name", ["a", "site", "my-site_2.test", "a" * 63])
    def test_names_that_are_not(self, name: str) -> None:
        check_name(name)

    def test_a_directory_with_something_in_it(self, tmp_path: Path) -> None:
        (tmp_path / "precious").touch()
        with pytest.raises(ImageError, match="not an empty directory"):
            make_bundle(tmp_path, Application("a:b"), name="a")
        assert [path.name for path in tmp_path.iterdir()] == ["precious"]

    def test_the_application_into_itself(self, tmp_path: Path) -> None:
        application = Application("a:b", source=tmp_path)
        with pytest.raises(ImageError, match="copied into itself"):
            make_bundle(tmp_path / "bundle", application, name="a")

    def test_the_base_into_itself(self, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to("base")
        (tmp_path / "base").mkdir()
        with pytest.raises(ImageError, match="copied into itself"):
            make_bundle(
                tmp_path / "link" / "bundle",
                Application("a:b"),
                name="a",
                base=tmp_path / "base",
            )

    def test_the_whole_machine_into_podman(self) -> None:
        with pytest.raises(ImageError, match="copied into itself"):
            make_podman_image(Application("a:b"), name="a", base=Path("/"))

    def test_large_letters_for_podman(self) -> None:
        with pytest.raises(ImageError, match="small letters"):
            make_podman_image(Application("a:b"), name="A")

    @needs_root
    def test_a_base_without_python_and_nothing_is_left(self, tmp_path: Path) -> None:
        base, out = tmp_path / "base", tmp_path / "made" / "bundle"
        base.mkdir()
        with pytest.raises(ImageError, match="python3, sh and env; leave --base out"):
            make_bundle(out, Application("a:b"), name="a", base=base)
        assert list((tmp_path / "made").iterdir()) == []

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may")
    def test_anybody_but_root(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match="only root"):
            make_bundle(tmp_path / "bundle", Application("a:b"), name="a")

    @pytest.mark.parametrize("link", ["run", "opt", "srv", "etc"])
    def test_a_base_with_a_link_that_leads_outside(self, tmp_path: Path, link: str) -> None:
        base, root, outside = (tmp_path / name for name in ("base", "root", "outside"))
        for folder in (base, root, outside):
            folder.mkdir()
        (outside / "quicferry").mkdir()
        (base / link).symlink_to(outside)
        with pytest.raises(ImageError, match=f"/{link} is a link"):
            fill_root(root, Application("a:b"), base, quiet)
        assert (outside / "quicferry").is_dir()

    @pytest.mark.skipif(shutil.which("apt-get") is None, reason="there is no apt-get")
    def test_apt_without_debian(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "lists").mkdir()
        configuration = tmp_path / "apt.conf"
        configuration.write_text(f'Dir::State::lists "{tmp_path}/lists";\n')
        monkeypatch.setenv("APT_CONFIG", str(configuration))
        with pytest.raises(ImageError, match="run apt-get update"):
            find_mirror()


def test_the_socket_is_where_the_engine_looks() -> None:
    bundle = Bundle(Path("/b"), "site", "sha256:00", ROOT)
    assert bundle.socket_directory == Path("/run/quicferry/site")


def test_packages_are_chosen_for_the_c_library() -> None:
    platforms = Python(PYTHON, (3, 13), "x86_64", 41).platforms
    assert platforms[0] == "manylinux_2_41_x86_64"
    assert {"manylinux_2_17_x86_64", "manylinux2014_x86_64"} <= set(platforms)
    assert "manylinux_2_42_x86_64" not in platforms
