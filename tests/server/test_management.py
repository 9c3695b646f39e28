from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from loopback import (
    Filter,
    at,
    free_port,
    http_client,
    served,
    server_side,
    stock_configuration,
)

from quicferry import MigrationAddress, MigrationErrorCode, MigrationProtocol, Server, Unready
from quicferry.protocol import HandshakeFinished, MigrationFailed, PoolAddressAcknowledged
from quicferry.server import (
    ConfigurationError,
    ManagementClient,
    ManagementError,
    ManagementServer,
    Phase,
    PhaseChanged,
    ServerEvent,
    default_management_path,
    management_directory,
)
from quicferry.server import management as management_module
from quicferry.server.commands import COMMANDS, decode, describe_event, parse


@asynccontextmanager
async def managed(path: Path) -> AsyncIterator[tuple[Server, ManagementClient]]:
    async with (
        served(port=free_port("127.0.0.1", "127.0.0.2")) as server,
        ManagementServer(server, path),
        ManagementClient.connect(path) as client,
    ):
        yield server, client


class RawConnection:
    """A client of the management interface that may send anything."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def ask(self, data: bytes) -> Any:
        """Send something and return the next reply."""
        self.writer.write(data)
        return json.loads(await self.reader.readline())


@asynccontextmanager
async def raw_connection(path: Path) -> AsyncIterator[RawConnection]:
    reader, writer = await asyncio.open_unix_connection(str(path), limit=1 << 22)
    yield RawConnection(reader, writer)
    writer.close()


def is_there(path: Path) -> bool:
    return path.exists()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def leave_file(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.write_text("precious")


def is_untouched(path: Path) -> bool:
    return path.read_text() == "precious"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "management.sock"


async def test_relocation_by_commands(path: Path) -> None:
    async with (
        managed(path) as (server, manager),
        http_client(server) as client,
        http_client(server, configuration=stock_configuration()) as stock,
    ):
        name = (await server_side(server, client)).connection.stable_id
        old = (await server_side(server, stock)).connection.stable_id
        source, destination = server.address, at("127.0.0.2", server.address.port)
        result = await manager.command(
            "imminent", protocol="explicit", address=str(destination), deadline=2
        )
        assert result.pop("seconds") < 2
        assert result == {
            "ready": True,
            "connections": {name: "explicit"},
            "unready": [],
            "silent": [],
            "unable": {old: "PROTOCOL_NOT_NEGOTIATED"},
            "failed": {},
        }
        status = await manager.command("status")
        assert (status["address"], status["phase"]) == (str(source), "ready")
        assert {each["id"]: each["progress"] for each in status["connections"]} == {
            name: "ready",
            old: "unable",
        }
        result = await manager.command("switch", address=str(destination))
        assert result.pop("switched_at") <= asyncio.get_running_loop().time()
        assert result == {
            "source": str(source),
            "destination": str(destination),
            "told": [name],
            "closed": [old],
        }
        result = await manager.command("wait", timeout=10)
        assert result["completed"]
        assert result["seconds"] == pytest.approx(result["completed_seconds"].pop(name), abs=0.01)
        assert (result["completed_seconds"], result["pending"], result["lost"]) == ({}, [], [])


async def test_named_connections(path: Path) -> None:
    async with managed(path) as (server, manager), http_client(server) as client:
        name = (await server_side(server, client)).connection.stable_id
        for choice, used in (
            ({"protocol": "symmetric"}, "symmetric"),
            ({}, "synchronized-symmetric"),
        ):
            result = await manager.command("imminent", connections={name: choice})
            assert result["connections"] == {name: used}
            assert await manager.command("abort") == {}


async def test_commands_at_the_same_time(path: Path) -> None:
    link = Filter()
    async with (
        managed(path) as (server, manager),
        http_client(server, wrap_transport=link) as client,
    ):
        await server_side(server, client)
        link.cut()
        announcing = asyncio.create_task(manager.command("imminent", deadline=60))
        while (await manager.command("status"))["phase"] != "preparing":
            pass
        await manager.command("abort")
        with pytest.raises(ManagementError, match="ABORTED"):
            await announcing


async def test_events(path: Path) -> None:
    async with managed(path) as (server, manager):
        events = await manager.events()
        async with http_client(server) as client:
            name = (await server_side(server, client)).connection.stable_id
            await manager.command("imminent")
            await manager.command("switch", address=f"127.0.0.2:{server.address.port}")
            seen = []
            async for event in events:
                event.pop("id", None)
                seen.append(event)
                if event == {"event": "PhaseChanged", "connection": None, "phase": "serving"}:
                    break
        assert seen[0]["event"] == "HandshakeFinished"
        assert seen[0]["connection_id"] == seen[0]["connection"] == name
        assert {"event": "MigrationReady", "connection": name, "protocol": SYNC} in seen
        await server.close()
        rest = [event["event"] async for event in events]
        assert rest[-1] == "ServerClosed"


SYNC = "synchronized-symmetric"


@pytest.mark.parametrize(
    ("event", "described"),
    [
        (
            HandshakeFinished(at("127.0.0.1", 1), "ab", MigrationProtocol(5)),
            {
                "client_address": "127.0.0.1:1",
                "connection_id": "ab",
                "protocols": ["explicit", "symmetric"],
            },
        ),
        (
            HandshakeFinished(None, "ab", MigrationProtocol(0)),
            {"client_address": None, "connection_id": "ab", "protocols": []},
        ),
        (
            PoolAddressAcknowledged(MigrationAddress.of(at("[::1]", 7))),
            {"address": "[::1]:7"},
        ),
        (MigrationFailed(MigrationErrorCode.INVALID_STATE), {"error": "INVALID_STATE"}),
        (PhaseChanged(Phase.READY), {"phase": "ready"}),
    ],
)
def test_described_events(event: Any, described: dict[str, Any]) -> None:
    expected = {"event": type(event).__name__, "connection": "ab", **described}
    assert describe_event(ServerEvent("ab", event)) == expected
    json.dumps(expected)


async def test_shutdown(path: Path) -> None:
    async with managed(path) as (server, manager), http_client(server) as client:
        assert await manager.command("shutdown") == {}
        await server.wait_closed()
        await client.wait_lost()
    assert not is_there(path)


# Errors


WRONG = [
    (b"nonsense", "BAD_REQUEST"),
    (b"[1]", "BAD_REQUEST"),
    (b'"imminent"', "BAD_REQUEST"),
    (b"\xff\xfe", "BAD_REQUEST"),
    (b"[" * 100_000, "BAD_REQUEST"),
    (b'{"command": "abort", "command": "status"}', "BAD_REQUEST"),
    (b"{}", "UNKNOWN_COMMAND"),
    (b'{"command": "explode"}', "UNKNOWN_COMMAND"),
    (b'{"command": ["abort"]}', "UNKNOWN_COMMAND"),
    (b'{"command": "status", "verbose": 1}', "BAD_REQUEST"),
    (b'{"command": "switch"}', "BAD_REQUEST"),
    (b'{"command": "switch", "address": null}', "BAD_REQUEST"),
    (b'{"command": "switch", "address": 5}', "BAD_REQUEST"),
    (b'{"command": "switch", "address": "127.0.0.2"}', "INVALID_ADDRESS"),
    (b'{"command": "switch", "address": "127.0.0.2:4433", "unready": "panic"}', "BAD_REQUEST"),
    (b'{"command": "switch", "address": "127.0.0.2:4433"}', "NOT_PREPARED"),
    (b'{"command": "abort"}', "NOT_PREPARED"),
    (b'{"command": "wait"}', "NOT_PREPARED"),
    (b'{"command": "wait", "timeout": 0}', "BAD_REQUEST"),
    (b'{"command": "imminent", "protocol": "teleport"}', "UNKNOWN_PROTOCOL"),
    (b'{"command": "imminent", "protocol": 4}', "BAD_REQUEST"),
    (b'{"command": "imminent", "deadline": "soon"}', "BAD_REQUEST"),
    (b'{"command": "imminent", "deadline": true}', "BAD_REQUEST"),
    (b'{"command": "imminent", "deadline": NaN}', "BAD_REQUEST"),
    (b'{"command": "imminent", "deadline": 1e99}', "BAD_REQUEST"),
    (b'{"command": "imminent", "deadline": -1}', "BAD_REQUEST"),
    (b'{"command": "imminent", "protocol": "explicit"}', "INVALID_ADDRESS"),
    (b'{"command": "imminent", "protocol": "explicit", "address": "x"}', "INVALID_ADDRESS"),
    (
        b'{"command": "imminent", "protocol": "symmetric", "address": "127.0.0.2:1"}',
        "INVALID_ADDRESS",
    ),
    (b'{"command": "imminent", "protocol": "pool-of-addresses"}', "EMPTY_POOL_MIGRATION_ADDRESSES"),
    (b'{"command": "imminent", "connections": ["a"]}', "BAD_REQUEST"),
    (b'{"command": "imminent", "connections": {"a": "symmetric"}}', "BAD_REQUEST"),
    (b'{"command": "imminent", "connections": {"a": {"port": 1}}}', "BAD_REQUEST"),
    (b'{"command": "imminent", "connections": {"a": {}}}', "UNKNOWN_CONNECTION"),
    (b'{"command": "imminent", "protocol": "symmetric", "connections": {"a": {}}}', "BAD_REQUEST"),
]


async def test_errors_by_name_change_nothing(path: Path) -> None:
    async with (
        managed(path) as (server, _),
        raw_connection(path) as connection,
        http_client(server) as client,
    ):
        await server_side(server, client)
        for line, code in WRONG:
            reply = await connection.ask(line + b"\n")
            assert (line[:80], reply["ok"], reply["error"]["code"]) == (line[:80], False, code)
            assert reply["error"]["message"]
            assert server.phase is Phase.SERVING
        assert (await client.request("POST", "/", body=b"unharmed")).body == b"unharmed"


async def test_replies_are_marked_with_the_id(path: Path) -> None:
    async with managed(path), raw_connection(path) as connection:
        for given in (1, "one", 1.5, 0):
            request = {"id": given, "command": "status"}
            assert (await connection.ask(json.dumps(request).encode() + b"\n"))["id"] == given
            request = {"id": given, "command": "nothing"}
            assert (await connection.ask(json.dumps(request).encode() + b"\n"))["id"] == given
        reply = await connection.ask(b'{"command": "status"}\r\n')
        assert (reply["id"], reply["ok"]) == (None, True)
        assert (await connection.ask(b'\n \n{"command": "status"}\n'))["ok"]


async def test_a_line_that_is_too_long_is_skipped(path: Path) -> None:
    async with managed(path), raw_connection(path) as connection:
        long = b'{"command": "status", "x": "' + b"y" * management_module.LONGEST_LINE + b'"}\n'
        for _ in range(2):
            assert (await connection.ask(long))["error"]["code"] == "BAD_REQUEST"
            assert (await connection.ask(b'{"command": "status"}\n'))["ok"]


async def test_too_many_requests_at_once(path: Path) -> None:
    async with managed(path) as (server, _), raw_connection(path) as connection:
        await server.imminent()
        await server.switch(at("127.0.0.2", server.address.port))
        count = management_module.MOST_REQUESTS + 1
        connection.writer.write(b'{"id": 1, "command": "events"}\n' * count)
        replies = [json.loads(await connection.reader.readline()) for _ in range(count)]
        refused = [reply["error"]["code"] for reply in replies if not reply["ok"]]
        assert refused == ["TOO_MANY_REQUESTS"]


async def test_a_client_that_goes_away_changes_nothing(path: Path) -> None:
    link = Filter()
    async with (
        managed(path) as (server, manager),
        http_client(server, wrap_transport=link) as client,
    ):
        await server_side(server, client)
        link.cut()
        for ending in (b'{"command": "imminent", "deadline": 60}\n{"comm', b""):
            async with raw_connection(path) as connection:
                connection.writer.write(ending)
                await connection.writer.drain()
        while (await manager.command("status"))["phase"] != "preparing":
            pass
        await manager.command("abort")
        assert server.phase is Phase.SERVING


async def test_a_client_that_has_sent_everything_gets_its_replies(path: Path) -> None:
    async with managed(path), raw_connection(path) as connection:
        connection.writer.write(b'{"id": 1, "command": "status"}\n{"id": 2, "command": "status"}\n')
        connection.writer.write_eof()
        lines = (await connection.reader.read()).splitlines()
        assert sorted(json.loads(line)["id"] for line in lines) == [1, 2]


async def test_server_goes_away(path: Path) -> None:
    async with served() as server:
        management = ManagementServer(server, path)
        await management.start()
        async with ManagementClient.connect(path) as manager:
            assert (await manager.command("status"))["phase"] == "serving"
            events = await manager.events()
            await management.close()
            assert [event async for event in events] == []
            with pytest.raises(ManagementError, match="lost") as caught:
                await manager.command("status")
            assert caught.value.code == "UNREACHABLE"
        with pytest.raises(ManagementError, match="no server listens at") as caught:
            async with ManagementClient.connect(path):
                pass
        assert caught.value.code == "UNREACHABLE"


# Anything at all


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)
KEYS = ["id", "command", *{name for command in COMMANDS.values() for name in command.fields}]


@given(st.binary(max_size=200))
def test_any_line_is_a_request_or_an_error(line: bytes) -> None:
    code = "none"
    try:
        assert isinstance(decode(line), dict)
    except ManagementError as exc:
        code = exc.code
    assert code in {"none", "BAD_REQUEST"}


@given(
    st.sampled_from(list(COMMANDS)),
    st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5),
)
def test_any_fields_make_a_request_or_an_error(name: str, fields: dict[str, Any]) -> None:
    message = decode(json.dumps(_finite({**fields, "command": name})).encode())
    code = "none"
    try:
        request = parse(message, COMMANDS)
        assert request.name == name
        assert request.fields.keys() == COMMANDS[name].fields.keys()
        assert isinstance(request.fields.get("unready", Unready.ABORT), Unready)
    except ManagementError as exc:
        code = exc.code
    assert code in {"none", "BAD_REQUEST", "INVALID_ADDRESS", "UNKNOWN_PROTOCOL"}


def _finite(value: Any) -> Any:
    """Return a value without the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


# The socket


async def test_only_the_user_may_connect(path: Path) -> None:
    before = os.umask(0)
    try:
        async with managed(path):
            assert mode_of(path) == 0o600
            assert os.umask(0) == 0
    finally:
        os.umask(before)
    assert not is_there(path)


async def test_socket_left_by_a_server_that_died(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stale:
        stale.bind(str(path))
    async with managed(path) as (_, manager):
        assert (await manager.command("status"))["phase"] == "serving"


async def test_socket_of_a_running_server_is_left_alone(path: Path) -> None:
    async with managed(path) as (server, manager):
        with pytest.raises(ConfigurationError, match="another server listens there"):
            await ManagementServer(server, path).start()
        assert (await manager.command("status"))["phase"] == "serving"


async def test_other_files_are_left_alone(path: Path) -> None:
    leave_file(path)
    async with served() as server:
        with pytest.raises(ConfigurationError, match="not a socket"):
            await ManagementServer(server, path).start()
        with pytest.raises(ConfigurationError, match="name another path"):
            await ManagementServer(server, path / "below").start()
        with pytest.raises(ConfigurationError, match="name another path"):
            await ManagementServer(server, path.parent / ("x" * 200)).start()
    assert is_untouched(path)


async def test_socket_that_was_replaced_is_left_alone(path: Path) -> None:
    async with managed(path):
        leave_file(path)
    assert is_untouched(path)


def test_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert management_directory() == tmp_path / "quicferry"
    assert default_management_path() == tmp_path / "quicferry" / f"{os.getpid()}.sock"
    assert mode_of(tmp_path / "quicferry") == 0o700
    (tmp_path / "quicferry").chmod(0o755)
    with pytest.raises(ConfigurationError, match="not a directory of this user alone"):
        management_directory()
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    assert management_directory() == tmp_path / f"quicferry-{os.getuid()}"


@pytest.mark.parametrize("leads_to", ["nowhere", "directory", "file"])
def test_directory_that_is_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leads_to: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    (tmp_path / "directory").mkdir(mode=0o700)
    (tmp_path / "file").touch(mode=0o600)
    (tmp_path / "quicferry").symlink_to(tmp_path / leads_to)
    with pytest.raises(ConfigurationError, match="not a directory of this user alone"):
        management_directory()
    assert not (tmp_path / "nowhere").exists()


def test_directory_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="name another path for the socket"):
        management_directory()
