"""qlog: the extension's frames stand in the packets, its events in a category of their own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from aioquic.quic.logger import QuicLogger
from simulated_pair import AWAY, HOME, Pair, address, pair, pool
from support import EXPLICIT, POOL, SYMMETRIC, SYNCHRONIZED, named

from quicferry.protocol import ClientMigration, MigrationProtocol, Policy, ServerMigration


def trace_of(logger: QuicLogger, side: str) -> list[dict[str, Any]]:
    """The events of one side's trace; they can be written as JSON."""
    traces = json.loads(json.dumps(logger.to_dict()))["traces"]
    (events,) = (trace["events"] for trace in traces if trace["vantage_point"]["type"] == side)
    assert isinstance(events, list)
    return events


def frames(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [
        frame
        for event in events
        if event["name"] == f"transport:{name}"
        for frame in event["data"]["frames"]
        if "migrat" in frame["frame_type"]
    ]


def migrate(it: Pair, protocol: MigrationProtocol) -> None:
    it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
    it.relocate(AWAY, frozen=0.1)
    it.exchange()
    it.network.run_for(1)


UNKNOWN = {"frame_type": "server_migration", "address": None}
FRAMES: dict[MigrationProtocol, list[dict[str, Any]]] = {
    EXPLICIT: [{"frame_type": "server_migration", "address": str(address(AWAY))}],
    POOL: [{"frame_type": "pool_migration_address", "address": str(address(AWAY))}],
    SYMMETRIC: [{"frame_type": "server_migrated"}],
    SYNCHRONIZED: [UNKNOWN, {"frame_type": "server_migrated"}],
}


@pytest.mark.parametrize("protocol", MigrationProtocol)
def test_frames_and_events(protocol: MigrationProtocol) -> None:
    logger = QuicLogger()
    options = ServerMigration(pool=pool(AWAY) if protocol is POOL else ())
    with pair(logger=logger, server=options, client=ClientMigration(policy=Policy.REACTIVE)) as it:
        migrate(it, protocol)
        for side, endpoint in (("client", it.client), ("server", it.server)):
            trace = trace_of(logger, side)
            assert frames(trace, "packet_sent") == (FRAMES[protocol] if side == "server" else [])
            received = FRAMES[protocol] if side == "client" else []
            assert frames(trace, "packet_received") == received
            logged = [event for event in trace if event["name"].startswith("migration:")]
            assert [event["name"].replace("_", "") for event in logged] == [
                f"migration:{name.lower()}" for name in named(endpoint)
            ]
            assert logged[-1] == {
                "name": "migration:migration_completed",
                "data": {"protocol": protocol.name.lower(), "address": str(address(AWAY))},  # type: ignore[union-attr]
                "time": logged[-1]["time"],
            }
            assert logged[-1]["time"] == pytest.approx(endpoint.migration_events[-1][0] * 1000)


def test_path_validation_is_in_the_trace() -> None:
    logger = QuicLogger()
    with pair(logger=logger) as it:
        migrate(it, EXPLICIT)
        for side, sent, received in (
            ("client", "path_challenge", "path_response"),
            ("server", "path_response", "path_challenge"),
        ):
            trace = trace_of(logger, side)
            for name, frame_type in (("packet_sent", sent), ("packet_received", received)):
                assert any(
                    frame["frame_type"] == frame_type
                    for event in trace
                    if event["name"] == f"transport:{name}"
                    for frame in event["data"]["frames"]
                ), (side, name)


def test_handshake_and_end_are_in_the_trace() -> None:
    logger = QuicLogger()
    with pair(logger=logger) as it:
        it.client.connection.close(error_code=7, reason_phrase="enough")
        it.client.flush()
        it.network.run_for(3)
        logged = {
            event["name"]: event["data"]
            for event in trace_of(logger, "server")
            if event["name"].startswith("migration:")
        }
        assert logged == {
            "migration:handshake_finished": {
                "client_address": str(address(it.client.local)),
                "connection_id": it.server.migrating.stable_id,
                "protocols": "explicit|pool_of_addresses|symmetric|synchronized_symmetric",
            },
            "migration:connection_closed": {"error_code": 7, "reason": "enough"},
        }


def test_nothing_of_it_without_migration() -> None:
    logger = QuicLogger()
    with pair(logger=logger, client=None) as it:
        it.exchange()
        assert not [
            event for event in trace_of(logger, "client") if event["name"].startswith("migration:")
        ]


@pytest.mark.parametrize("protocol", [EXPLICIT, SYNCHRONIZED])
def test_a_withdrawal(protocol: MigrationProtocol) -> None:
    logger = QuicLogger()
    with pair(logger=logger) as it:
        it.imminent(protocol, AWAY if protocol is EXPLICIT else None)
        it.server.migrating.abort_migration(now=it.network.now)
        it.server.flush()
        it.network.run_for(0.2)
        withdrawal = {"frame_type": "server_migration", "address": str(address(HOME))}
        told = address(AWAY) if protocol is EXPLICIT else None
        for side, frame_list, expected in (
            ("client", "packet_received", {"address": told and str(told)}),
            ("server", "packet_sent", {}),
        ):
            trace = trace_of(logger, side)
            assert frames(trace, frame_list)[-1] == withdrawal
            event = [each for each in trace if each["name"].startswith("migration:")][-1]
            name = "announcement_withdrawn" if side == "client" else "withdrawal_acknowledged"
            assert (event["name"], event["data"]) == (f"migration:{name}", expected)
