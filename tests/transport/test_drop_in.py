"""`Connection` stands wherever aioquic's class stands, and switched off it is that class."""

from __future__ import annotations

import ast
import inspect
import re
import ssl
from pathlib import Path as FilePath
from typing import Any

import pytest
from aioquic.h3.connection import H3Connection
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicNetworkPath
from aioquic.quic.packet import QuicErrorCode
from aioquic.quic.recovery import QuicPacketRecovery
from quicferry_lab.simulation import Answer, Datagram, Exchange, Path, SimulatedAddress
from quicferry_lab.simulation.configurations import server_configuration
from simulated_pair import HOME, genuine, pair
from support import (
    PING,
    SERVER_MIGRATED,
    error_code,
    migration_events,
    server_migration,
    wired_pair,
)

from quicferry import transport
from quicferry.protocol import (
    ClientMigration,
    MigrationProtocol,
    QuicferryError,
    ServerMigration,
)
from quicferry.transport import Configuration, Connection
from quicferry.transport.contract import FRAME_HANDLERS, check_contract

ELSEWHERE: SimulatedAddress = ("10.1.0.77", 777)
TROUBLED = Path(delay=0.009, loss=0.03, jitter=0.002, reordering=0.02, duplication=0.02)
EXCHANGES = (
    Exchange(30_000, 30_000, answer=Answer.AT_ONCE),
    Exchange(10, 5_000, pause=0.2),
    Exchange(0, 0),
)


# Switched off


def life(connection_type: type[QuicConnection], seed: int, path: Path | None) -> list[Datagram]:
    """Every datagram of a connection: handshake, transfer, key update, migration, close."""
    log: list[Datagram] = []
    with pair(
        seed,
        server=None,
        client=None,
        path=path,
        client_type=connection_type,
        server_type=connection_type,
        tap=log.append,
    ) as it:
        it.exchange(*EXCHANGES)
        it.client.connection.request_key_update()
        it.exchange(*EXCHANGES)
        it.client.connection.change_connection_id()
        it.exchange()
        it.client.migrate(ELSEWHERE)
        it.exchange(*EXCHANGES)
        it.deliver(it.client, genuine(it.server, PING), ("192.0.2.9", 9))
        it.exchange()
        it.client.connection.close(error_code=7, reason_phrase="enough")
        it.client.flush()
        it.network.run_for(5)
        assert error_code(it.server) == 7
    return log


@pytest.mark.parametrize("path", [None, TROUBLED], ids=["clear", "troubled"])
@pytest.mark.parametrize("seed", range(3))
def test_not_one_byte_differs(seed: int, path: Path | None) -> None:
    assert life(Connection, seed, path) == life(QuicConnection, seed, path)


def test_the_comparison_is_no_accident() -> None:
    assert life(QuicConnection, 0, None) != life(QuicConnection, 1, None)


@pytest.mark.parametrize("frame", [server_migration(None), SERVER_MIGRATED], ids=["32", "33"])
@pytest.mark.parametrize("to_client", [False, True], ids=["to-server", "to-client"])
def test_frames_where_nothing_was_negotiated(frame: bytes, to_client: bool) -> None:
    """Section 3: a client with which nothing was negotiated closes with PROTOCOL_VIOLATION."""
    with pair(server=None, client=None) as it:
        sender, receiver = (it.server, it.client) if to_client else (it.client, it.server)
        it.deliver(receiver, genuine(sender, frame), sender.local)
        it.network.run_for(3)
        assert error_code(receiver) == error_code(sender) == QuicErrorCode.PROTOCOL_VIOLATION


NOTHING_IN_COMMON = {
    "client": ClientMigration(protocols=MigrationProtocol.EXPLICIT),
    "server": ServerMigration(protocols=MigrationProtocol.SYMMETRIC),
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"server": None}, id="server-off"),
        pytest.param({"client": None}, id="client-off"),
        pytest.param({"server_type": QuicConnection}, id="stock-server"),
        pytest.param({"client_type": QuicConnection}, id="stock-client"),
        pytest.param(NOTHING_IN_COMMON, id="nothing-in-common"),
        pytest.param({}, id="idle"),
    ],
)
def test_after_the_handshake_nothing_is_added(options: dict[str, Any]) -> None:
    """The same packets with the same frames as between stock connections.

    Not at the same microseconds, nor beyond the congestion window: the handshake is 13 bytes
    longer, and the window has grown by them.
    """

    def packets(**options: Any) -> list[tuple[SimulatedAddress, set[int], int]]:
        with wired_pair(3, **options) as (it, wire):
            it.exchange(Exchange(4_000, 5_000), Exchange(10, 3_000, pause=0.2), Exchange(0, 0))
            it.network.run_for(2)
            return [(sent.destination, sent.types, sent.size) for sent in wire.sent]

    assert packets(**options) == packets(client_type=QuicConnection, server_type=QuicConnection)


# Construction


def test_same_constructor() -> None:
    ours = inspect.signature(Connection.__init__).parameters
    theirs = inspect.signature(QuicConnection.__init__).parameters
    assert list(ours) == list(theirs)
    for name, parameter in theirs.items():
        assert ours[name].default == parameter.default, name
        assert ours[name].kind == parameter.kind, name
    assert issubclass(Connection, QuicConnection)


@pytest.mark.parametrize(
    "arguments",
    [
        {"configuration": QuicConfiguration(is_client=True, alpn_protocols=["h3"])},
        {"configuration": QuicConfiguration(is_client=False)},
        {"configuration": QuicConfiguration(is_client=True), "token_handler": None},
        {
            "configuration": QuicConfiguration(is_client=True),
            "original_destination_connection_id": b"12345678",
        },
        {
            "configuration": QuicConfiguration(is_client=True),
            "retry_source_connection_id": b"12345678",
        },
        {
            "configuration": QuicConfiguration(is_client=False),
            "original_destination_connection_id": b"12345678",
        },
        {"configuration": QuicConfiguration(is_client=True, max_datagram_size=100)},
        {"configuration": QuicConfiguration(is_client=True, initial_rtt=0)},
    ],
)
def test_same_errors_of_the_constructor(arguments: dict[str, Any]) -> None:
    def outcome(connection_type: type[QuicConnection]) -> str:
        try:
            connection_type(**arguments)
        except Exception as exc:
            return repr(exc)
        return "none"

    assert outcome(Connection) == outcome(QuicConnection)


@pytest.mark.parametrize(
    ("configuration", "expected"),
    [
        (
            Configuration(is_client=True, server_migration=ServerMigration()),
            "must be a ClientMigration",
        ),
        (
            server_configuration(ClientMigration()),  # type: ignore[arg-type]
            "must be a ServerMigration",
        ),
    ],
    ids=["client", "server"],
)
def test_options_of_the_other_side(configuration: Configuration, expected: str) -> None:
    original = None if configuration.is_client else b"12345678"
    with pytest.raises(ValueError, match=expected):
        Connection(configuration=configuration, original_destination_connection_id=original)


def test_plain_configuration_is_migration_off() -> None:
    connection = Connection(
        configuration=QuicConfiguration(alpn_protocols=["h3"], verify_mode=ssl.CERT_NONE)
    )
    assert connection.negotiated is None
    assert connection.migration_state == "idle"
    assert connection.next_migration_event() is None


def test_configuration_is_aioquics_with_a_few_more_fields() -> None:
    ours = set(inspect.signature(Configuration).parameters)
    limits = {"max_header_size", "max_header_fields", "max_streams"}
    more = ours - set(inspect.signature(QuicConfiguration).parameters)
    assert more == {"server_migration", *limits}
    assert Configuration().server_migration is None


@pytest.mark.parametrize("client", [None, ClientMigration()], ids=["off", "on"])
def test_events_of_aioquic_are_its_own(client: ClientMigration | None) -> None:
    """Ours are in a queue of their own, so no application meets one unprepared."""
    seen: list[object] = []
    with pair(client=client) as it:
        next_event = it.client.connection.next_event

        def watched() -> object:
            event = next_event()
            seen.append(event)
            return event

        it.client.connection.next_event = watched  # type: ignore[method-assign, assignment]
        it.exchange()
        it.client.connection.close()
        it.client.flush()
        it.network.run_for(3)
        assert {type(event).__module__ for event in seen if event} == {"aioquic.quic.events"}
        assert {type(event).__module__ for event in migration_events(it.client)} == {
            "quicferry.protocol.events"
        }


# The contract with aioquic's private parts


def test_contract_holds() -> None:
    check_contract()


@pytest.mark.parametrize(
    ("owner", "attribute"),
    [
        (QuicConnection, "_flush_builder"),
        (QuicConnection, "_write_path_challenge_frame"),
        (QuicPacketRecovery, "_detect_loss"),
    ],
)
def test_contract_names_what_is_missing(
    owner: type, attribute: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(owner, attribute)
    with pytest.raises(QuicferryError) as caught:
        check_contract()
    (message,) = caught.value.args
    assert f"lacks {owner.__name__}.{attribute};" in message
    assert "install aioquic 1.7.2" in message
    assert "\n" not in message


def test_contract_names_everything_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(self: QuicNetworkPath, addr: object, is_validated: bool = False) -> None:
        self.addr = addr

    monkeypatch.setattr(QuicNetworkPath, "__init__", init)
    with pytest.raises(QuicferryError, match=r"QuicNetworkPath\.bytes_received, QuicNetworkPath\."):
        check_contract()


def test_contract_is_complete() -> None:
    """Every private name that the package uses of others is checked."""
    folder = FilePath(transport.__file__).parent
    used: set[str] = set()
    own: set[str] = set()
    for path in [*folder.rglob("*.py"), *(folder.parent / "protocol").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                    own.add(name)
                case ast.Attribute(attr=name) if name.startswith("_") and name[1] != "_":
                    used.add(name)
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                    own.add(name)
    checked = set(re.findall(r"\w+", (folder / "contract.py").read_text(encoding="utf-8")))
    ours = {name for name in own if not hasattr_anywhere(name)}
    assert used - ours - checked == set()


def hasattr_anywhere(name: str) -> bool:
    """Whether aioquic has this name; an attribute of ours of the same name counts as aioquic's."""
    connection = QuicConnection(configuration=QuicConfiguration(is_client=True))
    owners = (connection, connection._loss, QuicNetworkPath(HOME), H3Connection)
    return any(hasattr(owner, name) for owner in owners)


def test_frame_handlers_are_where_they_are_looked_for() -> None:
    connection = Connection(configuration=QuicConfiguration(is_client=True))
    assert {0x32, 0x33, 0x34} <= set(getattr(connection, FRAME_HANDLERS))
    stock = QuicConnection(configuration=QuicConfiguration(is_client=True))
    assert not {0x32, 0x33, 0x34} & set(getattr(stock, FRAME_HANDLERS))
