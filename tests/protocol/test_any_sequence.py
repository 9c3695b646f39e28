"""Whatever the machines are told, in whatever order."""

from __future__ import annotations

from contextlib import suppress
from itertools import pairwise
from typing import Any

from driven import (
    AWAY,
    AWAY6,
    ELSEWHERE,
    HOME,
    MIGRATED,
    POOL,
    THIRD,
    UNKNOWN,
    DrivenClient,
    DrivenServer,
    announced,
    pooled,
)
from hypothesis import given
from hypothesis import strategies as st

from quicferry.protocol import (
    Address,
    ConnectionErrorCode,
    MigrationAddress,
    MigrationError,
    MigrationProtocol,
    MigrationReady,
    PeerError,
    Policy,
    PoolAddressReceived,
    Scheduler,
    ServerMigration,
    ServerMigrationFrame,
    refusal,
)
from quicferry.protocol.client import (
    Commit,
    Move,
    Redirect,
    ReturnHome,
)
from quicferry.protocol.server import SwitchPath

ADDRESSES = [HOME, AWAY, THIRD, ELSEWHERE, AWAY6, Address.parse("224.0.0.1:1")]
addresses = st.sampled_from(ADDRESSES)
frames = (
    st.builds(announced, addresses)
    | st.just(UNKNOWN)
    | st.just(MIGRATED)
    | st.builds(pooled, addresses)
)
numbers = st.none() | st.integers(0, 20)
inputs = (
    st.tuples(st.just("receive"), st.lists(frames, max_size=2), addresses, numbers)
    | st.tuples(st.sampled_from(["timeout", "probe_due", "validation_failed"]))
    | st.tuples(st.just("answered"), addresses, addresses)
)


@given(
    st.integers(1, 15).map(MigrationProtocol),
    st.sampled_from(Policy),
    st.sampled_from(Scheduler),
    st.lists(inputs, max_size=30),
)
def test_client(
    negotiated: MigrationProtocol,
    policy: Policy,
    scheduler: Scheduler,
    sequence: list[tuple[Any, ...]],
) -> None:
    """Only PROTOCOL_VIOLATION comes out, and nothing is ever sent to an address of no use."""
    client = DrivenClient(negotiated, policy=policy, scheduler=scheduler)
    closed = False
    for kind, *arguments in sequence:
        try:
            if kind == "receive":
                received, source, number = arguments
                client.receive(*received, source=source, number=number)
            elif kind == "answered":
                client.answered(arguments[0], source=arguments[1])
            else:
                getattr(client, kind)()
        except PeerError as exc:
            closed = exc.code is ConnectionErrorCode.PROTOCOL_VIOLATION
            if not closed:
                raise
            break
    moved = False
    for action in client.actions:
        if isinstance(action, Redirect | Move):
            assert refusal(action.address, HOME) is None
        # Whatever was left is either returned to or left for good.
        if isinstance(action, Move):
            moved = True
        elif isinstance(action, ReturnHome | Commit):
            moved = False
    assert closed or moved == client.state.startswith("VALIDATING")
    received_events = [e for e in client.events if isinstance(e, PoolAddressReceived)]
    assert len(received_events) == len(set(received_events))


sent = st.sampled_from(
    [announced(AWAY), announced(THIRD), announced(HOME), UNKNOWN, MIGRATED, pooled(AWAY)]
)
protocols = st.integers(0, 15).map(MigrationProtocol)
calls = (
    st.tuples(st.just("imminent"), protocols, st.none() | addresses)
    | st.tuples(st.sampled_from(["switch", "abort", "response_acknowledged"]))
    | st.tuples(st.sampled_from(["acknowledged", "lost"]), sent)
)


@given(protocols, st.booleans(), st.booleans(), st.booleans(), st.lists(calls, max_size=30))
def test_server(
    negotiated: MigrationProtocol,
    with_pool: bool,
    connection_ids: bool,
    can_withdraw: bool,
    sequence: list[tuple[Any, ...]],
) -> None:
    """Only MigrationError comes out; nothing is switched that was not ready, or completed twice."""
    pool = (MigrationAddress.of(AWAY),) if with_pool else ()
    server = DrivenServer(
        negotiated,
        options=ServerMigration(pool=pool),
        connection_ids=connection_ids,
        acknowledge_pool=False,
        can_withdraw=can_withdraw,
    )
    for kind, *arguments in sequence:
        with suppress(MigrationError):
            getattr(server, kind)(*arguments)
    names = [type(event).__name__ for event in server.events]
    ready, completed = names.count("MigrationReady"), names.count("MigrationCompleted")
    switched = sum(isinstance(action, SwitchPath) for action in server.actions)
    assert completed <= switched <= ready
    assert switched - completed == (server.state == "SWITCHED")
    assert not ready or connection_ids
    assert can_withdraw or announced(HOME) not in server.frames
    # Between two announcements that differ the client has acknowledged that it forgot the first.
    told = [frame for frame in server.frames if isinstance(frame, ServerMigrationFrame)]
    for before, after in pairwise(told):
        assert switched or before == after or announced(HOME) in (before, after)
    for event in server.events:
        if isinstance(event, MigrationReady):
            assert event.protocol & negotiated
            assert (event.protocol is POOL) or not with_pool or not negotiated & POOL
