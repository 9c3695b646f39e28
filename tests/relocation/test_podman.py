"""Containers of Podman: what it tells, and moving them between two hosts of the laboratory."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from relocation.podman_hosts import IMAGES, NAME, podman_hosts

from quicferry.relocation import EngineError
from quicferry.relocation.container.engines.podman import Podman
from quicferry.relocation.container.engines.podman_facts import Archive, Image, Inspected

RECORDED = Path(__file__).parent / "recorded"
"""What Podman 5.4.2 has printed."""

IDENTITY = "a" * 64


def recorded(name: str) -> Any:
    return json.loads((RECORDED / name).read_text())


def inspected(**changes: Any) -> Inspected:
    """Return the recorded container with something else, by the path to it."""
    found = recorded("podman-container.json")
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = found[0]
        for parent in parents:
            place = place[parent]
        place[last] = value
    return Inspected.parse(json.dumps(found))


def test_a_container_is_understood() -> None:
    found = inspected()
    assert found.status == "running"
    assert found.pid > 1
    assert found.image == Image.parse(json.dumps(recorded("podman-image.json"))).identity
    assert found.directory.name == "userdata"
    assert found.directory.parent.name == found.identity
    assert found.socket == Path("/run/quicferry/app/server.sock")
    assert not found.has_own_files
    assert found.obstacle is None


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        ({"OCIRuntime": "/usr/bin/crun"}, "--runtime runc"),
        ({"HostConfig__NetworkMode": "bridge"}, "--network host"),
        ({"HostConfig__IpcMode": "host"}, "--ipc private"),
        ({"Pod": IDENTITY}, "without one"),
        ({"HostConfig__AutoRemove": True}, "without --rm"),
        (
            {"HostConfig__RestartPolicy": {"Name": "always", "MaximumRetryCount": 0}},
            "podman update --restart=no app",
        ),
    ],
)
def test_what_cannot_be_moved_is_told_with_a_remedy(changes: dict[str, Any], remedy: str) -> None:
    assert remedy in (inspected(**changes).obstacle or "")


def test_a_runtime_is_known_by_its_path() -> None:
    assert inspected(OCIRuntime="/usr/sbin/runc").obstacle is None


def test_a_container_without_the_mount_has_no_socket() -> None:
    assert inspected(Mounts=[]).socket is None


@pytest.mark.parametrize("text", ["", "[]", "[{}]", "{}", "null", '[{"Id": 1}]'])
def test_anything_else_is_refused(text: str) -> None:
    for kind in (Inspected, Image):
        with pytest.raises(EngineError, match=r"use Podman 5\.4"):
            kind.parse(text)


def test_an_image_is_understood() -> None:
    image = Image.parse(json.dumps(recorded("podman-image.json")))
    assert len(image.identity) == 64
    assert image.names == {"localhost/qf-echo:1"}


def write_archive(path: Path, **changes: Any) -> None:
    config = {"id": IDENTITY, "name": "app", "rootfsImageName": "localhost/app:1", **changes}
    mounts = [
        {"destination": "/run/quicferry", "source": "/run/quicferry/app", "type": "bind"},
        {"destination": "/data", "source": "/srv/data", "type": "bind"},
        {"destination": "/etc/hosts", "source": f"/run/{IDENTITY}/hosts", "type": "bind"},
        {"destination": "/tmp", "source": "tmpfs", "type": "tmpfs"},
    ]
    spec = {"mounts": mounts, "process": {"user": {"uid": 61000, "gid": 61000}}}
    with tarfile.open(path, "w") as archive:
        for name, value in (("config.dump", config), ("spec.dump", spec)):
            data = json.dumps(value).encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def test_an_archive_is_understood(tmp_path: Path) -> None:
    write_archive(tmp_path / "checkpoint.tar")
    assert Archive.read(tmp_path / "checkpoint.tar") == Archive(
        identity=IDENTITY,
        name="app",
        image="localhost/app:1",
        socket=Path("/run/quicferry/app/server.sock"),
        sources=(Path("/srv/data"),),
        user=(61000, 61000),
        config={},
        spec={},
    )


def test_an_archive_does_not_lead_somewhere_else(tmp_path: Path) -> None:
    write_archive(tmp_path / "checkpoint.tar", id="../../etc")
    with pytest.raises(EngineError, match="no checkpoint of Podman"):
        Archive.read(tmp_path / "checkpoint.tar")


@pytest.mark.parametrize("length", [0, 100, 700, 5000])
def test_a_truncated_archive_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "checkpoint.tar"
    write_archive(path)
    path.write_bytes(path.read_bytes()[:length].ljust(min(length, 512), b"\0"))
    if length == 5000:
        assert Archive.read(path).name == "app"  # the rest is padding
        return
    with pytest.raises(EngineError, match="no checkpoint of Podman"):
        Archive.read(path)


def test_only_archives_grow() -> None:
    assert Podman().grows("checkpoint.tar")
    assert not Podman().grows("checkpoint/pages-1.img")


async def test_a_destination_needs_an_image() -> None:
    with pytest.raises(EngineError, match="--image NAME"):
        await Podman().destination("app")


@pytest.mark.lab
async def test_there_and_back_without_a_disk() -> None:
    """It does not fit on the disks, neither its memory nor what it has in /dev/shm."""
    async with podman_hosts("source", "destination") as (source, destination):
        await source.start_server("--read-only", memory=64, shared=32)
        _, *memory = await source.ask()
        there = await source.succeed("source", "memory", "dump")
        assert there["memory"] > 64 << 20
        assert there["same"]
        assert there["early"] > 0
        assert await source.status() == "exited"
        await source.carry_to(destination)

        came = await destination.succeed("destination", "restore")
        assert (came["image"], came["socket"]) == (there["image"], there["socket"])
        assert await destination.ask() == [2, *memory]
        assert await destination.left() == []
        await source.run("podman", "rm", NAME)

        await destination.succeed("source", "dump")
        await destination.carry_to(source)
        await source.succeed("destination", "restore")
        assert await source.ask() == [3, *memory]
        assert await source.left() == []
        await destination.succeed("discard")
        assert await destination.status() == ""
        assert await destination.left() == []


@pytest.mark.lab
async def test_what_has_changed_in_its_files_goes_along() -> None:
    async with podman_hosts("source", "destination") as (source, destination):
        await source.start_server("--log-driver", "k8s-file")
        await source.run("podman", "exec", NAME, "python3", "-c", "open('/srv/new','w').write('n')")
        await source.succeed("source", "dump")
        await source.carry_to(destination)
        await destination.succeed("destination", "restore")
        read = "print(open('/srv/new').read())"
        assert await destination.run("podman", "exec", NAME, "python3", "-c", read) == "n\n"
        assert (await destination.ask())[0] == 1


@pytest.mark.lab
async def test_going_on_here() -> None:
    async with podman_hosts("source") as (source,):
        await source.start_server("--read-only", memory=64, shared=32)
        before = await source.ask()
        await source.succeed("source", "dump", "resume")
        assert await source.ask() == [2, *before[1:]]
        assert await source.left() == []
        await source.succeed("source", "resume")  # it runs
        assert (await source.ask())[0] == 3
        await source.succeed("source", "dump", "remove", "remove")
        assert await source.status() == ""
        assert await source.left() == []


@pytest.mark.lab
async def test_going_on_after_a_dump_that_has_failed() -> None:
    """There is room for Podman's own copy, and none for the archive."""
    async with podman_hosts("source") as (source,):
        await source.start_server("--read-only", memory=64)
        await source.run("mkdir", "-p", f"/{IMAGES}")
        await source.run("mount", "-t", "tmpfs", "-o", "size=8m", "small", f"/{IMAGES}")
        told = await source.take("source", "dump", "resume")
        assert list(told["errors"]) == ["dump"]
        assert "no space left" in told["errors"]["dump"]
        assert (await source.ask())[0] == 1
        assert await source.left() == []


@pytest.mark.lab
async def test_going_on_by_hand() -> None:
    """Whoever was to resume it is gone; its images may be unmounted, and it still can go on."""
    async with podman_hosts("source") as (source,):
        await source.start_server("--read-only", memory=64)
        await source.run("mkdir", "-p", f"/{IMAGES.parent}")
        await source.run("mount", "-t", "tmpfs", "quicferry", f"/{IMAGES.parent}")
        await source.succeed("source", "dump")
        await source.run("umount", "--lazy", f"/{IMAGES.parent}")
        told = await source.take("source")
        assert f"podman container restore {NAME}" in told["errors"]["source"]
        await source.run("podman", "container", "restore", NAME)
        assert (await source.ask())[0] == 1
        await source.succeed("source", "dump")
        await source.succeed("interrupted", "resume")
        assert (await source.ask())[0] == 2
        assert await source.left() == []


@pytest.mark.lab
async def test_going_on_after_a_dump_whose_process_was_killed() -> None:
    async with podman_hosts("source") as (source,):
        await source.start_server("--read-only", memory=64)
        before = await source.ask()
        process = await source.begin("source", "dump")
        async with asyncio.timeout(30):
            while not await source.left():
                assert process.returncode is None
        process.kill()
        await process.wait()
        await source.succeed("interrupted", "resume")
        assert await source.ask() == [2, *before[1:]]
        assert await source.left() == []


@pytest.mark.lab
async def test_nothing_is_left_of_a_restore_that_has_failed() -> None:
    async with podman_hosts("source", "destination") as (source, destination):
        await source.start_server("--read-only", memory=64)
        await source.succeed("source", "dump")
        await source.carry_to(destination)
        archive = destination.host.root / IMAGES / "checkpoint.tar"
        whole = archive.read_bytes()
        with archive.open("r+b") as file:
            file.truncate(len(whole) // 2)
        told = await destination.take("destination", "restore")
        assert list(told["errors"]) == ["restore"]
        assert await destination.status() == ""
        assert await destination.left() == []
        archive.write_bytes(whole)
        await destination.succeed("destination", "restore")
        assert (await destination.ask())[0] == 1


@pytest.mark.lab
async def test_what_is_missing_is_told() -> None:
    async with podman_hosts("source", "destination") as (source, destination):
        assert "no container" in (await source.take("source"))["errors"]["source"]
        found = await destination.take("destination", image="localhost/none:1")
        assert "podman load" in found["errors"]["destination"]
        await source.run("mkdir", "-p", "/srv/data")
        await source.start_server("--read-only", "--volume", "/srv/data:/data")
        assert f"podman rm -f {NAME}" in (await source.take("destination"))["errors"]["destination"]
        assert (await source.succeed("version"))["version"].startswith("podman version")

        await source.succeed("source", "dump")
        await source.carry_to(destination)
        told = await destination.take("destination", "restore")
        assert "/srv/data, which is not on this host" in told["errors"]["restore"]
        await destination.run("mkdir", "-p", "/srv/data")
        await destination.run("podman", "tag", "localhost/echo:1", "localhost/other:1")
        await destination.run("podman", "untag", "localhost/echo:1", "localhost/echo:1")
        told = await destination.take("destination", "restore", image="localhost/other:1")
        assert "podman tag" in told["errors"]["restore"]
        await destination.run("podman", "tag", "localhost/other:1", "localhost/echo:1")
        told = await destination.take("destination", "restore")
        assert "--allow-mount /srv/data" in told["errors"]["restore"]
        await destination.succeed("allow=/srv/data", "destination", "restore")
        assert (await destination.ask())[0] == 1


@pytest.mark.lab
async def test_memory_goes_ahead_with_pre_copy() -> None:
    async with podman_hosts("source", "destination") as (source, destination):
        check = ("criu", "check", "--feature", "mem_dirty_track")
        if (await source.host.attempt(check)).returncode:
            pytest.skip("this kernel does not track which memory changes (CONFIG_MEM_SOFT_DIRTY)")
        await source.start_server("--read-only", memory=64, shared=32)
        _, *memory = await source.ask()
        await source.succeed("source", "pre-dump", "dump")
        images = source.host.root / IMAGES
        assert (images / "before.tar").stat().st_size > 64 << 20
        assert (images / "checkpoint.tar").stat().st_size < 48 << 20
        await source.carry_to(destination)
        await destination.succeed("destination", "restore")
        assert await destination.ask() == [2, *memory]
        assert await destination.left() == []
        await source.succeed("discard")
        assert await source.left() == []
