"""What a container puts where its management socket should be does not lead root astray."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from loopback import served

from quicferry import Address
from quicferry.relocation.container.engines import Podman, Runc
from quicferry.relocation.container.socket import FOREIGN_SOCKET, manage
from quicferry.relocation.container.technique import LARGEST_FAREWELL, MOST_FAREWELLS, farewells_of
from quicferry.relocation.errors import EngineError
from quicferry.server import ManagementError, ManagementServer
from quicferry.server.management_client import UNREACHABLE

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@asynccontextmanager
async def managed(path: Path) -> AsyncIterator[Path]:
    """Provide the management socket of a server."""
    path.parent.mkdir(exist_ok=True)
    async with served() as server, ManagementServer(server, path):
        yield path


async def problem_of(path: Path) -> ManagementError:
    async def use() -> None:
        async with manage(path) as management:
            await management.command("status")

    with pytest.raises(ManagementError) as caught:
        await use()
    assert str(path) in str(caught.value)
    assert "/proc/self/fd" not in str(caught.value)
    return caught.value


async def test_a_server_is_managed(tmp_path: Path) -> None:
    async with managed(tmp_path / "site" / "server.sock") as path, manage(path) as management:
        assert (await management.command("status"))["phase"] == "serving"


async def test_a_link_to_the_socket_of_another_server(tmp_path: Path) -> None:
    async with managed(tmp_path / "other" / "server.sock") as other:
        link = tmp_path / "site" / "server.sock"
        link.parent.mkdir()
        link.symlink_to(other)
        assert (await problem_of(link)).code == FOREIGN_SOCKET


async def test_something_else(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    path.touch()
    assert (await problem_of(path)).code == FOREIGN_SOCKET
    path.unlink()
    os.mkfifo(path)
    assert (await problem_of(path)).code == FOREIGN_SOCKET
    path.unlink()
    assert (await problem_of(path)).code == UNREACHABLE
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        assert (await problem_of(path)).code == UNREACHABLE


@AS_ROOT
async def test_the_socket_of_another_user(tmp_path: Path) -> None:
    """A hard link to one is not possible across users where links are protected, but who knows."""
    async with managed(tmp_path / "site" / "server.sock") as path:
        os.chown(path.parent, 61000, 61000)
        assert (await problem_of(path)).code == FOREIGN_SOCKET
        os.chown(path, 61000, 61000)
        async with manage(path) as management:
            assert (await management.command("status"))["phase"] == "serving"


async def test_what_was_looked_at_is_what_is_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container that exchanges its socket for a link in between gains nothing."""
    async with (
        managed(tmp_path / "site" / "server.sock") as path,
        managed(tmp_path / "other" / "server.sock") as other,
    ):
        looked_at = os.fstat

        def then_exchange(file: int) -> os.stat_result:
            found = looked_at(file)
            path.rename(path.with_name("moved"))
            path.symlink_to(other)
            monkeypatch.undo()
            return found

        monkeypatch.setattr(os, "fstat", then_exchange)
        async with manage(path) as management:
            there = await management.command("status")
        async with manage(other) as management:
            assert (await management.command("status"))["address"] != there["address"]
        path.unlink()
        path.with_name("moved").rename(path)


# Names


NAMES = ["", "-f", "--all", "a/b", "../a", "a b", "a\n", "ä", "a" * 200, ".."]


@pytest.mark.parametrize("engine", [Runc(), Podman("image")], ids=["runc", "podman"])
@pytest.mark.parametrize("name", NAMES)
async def test_no_program_is_given_a_name_that_it_takes_for_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: Runc | Podman, name: str
) -> None:
    for program in ("runc", "podman"):
        path = tmp_path / program
        path.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
        path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    for ask in (engine.source, engine.interrupted, engine.discard):
        with pytest.raises(EngineError, match="cannot be the name of a container"):
            await ask(name)
    assert not (tmp_path / "was-run").exists()


# Farewells

SERVER = Address.parse("192.0.2.1:443")
CLIENTS = {"198.51.100.7:50000", "[2001:db8::7]:50000"}
WORDS = {"source": ["192.0.2.1", 443], "destination": ["198.51.100.7", 50000], "data": "Z29vZA=="}


@pytest.mark.parametrize(
    ("server", "change", "count"),
    [
        (SERVER, {}, 1),
        (Address.parse("0.0.0.0:443"), {}, 1),
        (Address.parse("0.0.0.0:443"), {"source": ["192.0.2.9", 443]}, 1),
        (SERVER, {"source": ["192.0.2.1", 53]}, 0),
        (SERVER, {"source": ["192.0.2.9", 443]}, 0),
        (Address.parse("0.0.0.0:443"), {"source": ["192.0.2.1", 53]}, 0),
        (SERVER, {"destination": ["198.51.100.7", 53]}, 0),
        (SERVER, {"destination": ["198.51.100.8", 50000]}, 0),
        (SERVER, {"destination": ["::ffff:198.51.100.7", 50000]}, 1),
        (SERVER, {"destination": ["2001:db8::7", 50000]}, 1),
        (SERVER, {"destination": ["example.org", 50000]}, 0),
        (SERVER, {"data": "AAAA" * (LARGEST_FAREWELL // 3 + 1)}, 0),
    ],
)
def test_root_sends_nothing_else_for_a_server(
    server: Address, change: dict[str, object], count: int
) -> None:
    found = list(farewells_of([WORDS | change], server, CLIENTS))
    assert len(found) == count


def test_root_sends_little_for_a_server() -> None:
    found = list(farewells_of([WORDS] * 100, SERVER, CLIENTS))
    assert len(found) == MOST_FAREWELLS
    assert {(each.source, each.destination, each.data) for each in found} == {
        (("192.0.2.1", 443), ("198.51.100.7", 50000), b"good")
    }
