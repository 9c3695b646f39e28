"""Whatever the client's machine is told, in whatever order."""

from __future__ import annotations

from typing import Any

from driven import (
    AWAY,
    AWAY6,
    ELSEWHERE,
    HOME,
    MIGRATED,
    THIRD,
    UNKNOWN,
    DrivenClient,
    announced,
    pooled,
)
from hypothesis import given
from hypothesis import strategies as st

from quicferry.protocol import (
    Address,
    ConnectionErrorCode,
    MigrationProtocol,
    PeerError,
    Policy,
    PoolAddressReceived,
    Scheduler,
    refusal,
)
from quicferry.protocol.client import (
    Commit,
    Move,
    Redirect,
    ReturnHome,
)

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
def test_any_sequence(
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
