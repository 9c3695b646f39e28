"""A connection that stands still, and goes on: in place, or as a copy (`seal` says why).

Everything here is done to a server's connection as it is in memory. `snapshot` makes the copy of
one that is carried to another process; where the whole process is carried, the copy is the
connection itself, and `fall_silent` and `become_copy` stand for `freeze` and `thaw`.
"""

from __future__ import annotations

from functools import partial

from aioquic import tls
from aioquic.quic import events
from aioquic.quic.connection import QuicConnectionState
from aioquic.quic.packet import QuicErrorCode, QuicFrameType

from ..connection import Connection
from ..paths.recovery import MigratingRecovery
from ..seal import RESERVED_NUMBERS, Seal, SealState
from .flight import postpone_flight
from .format import SnapshotError

_ONE_RTT = tls.Epoch.ONE_RTT
_ROUTING_EVENTS = (events.ConnectionIdIssued, events.ConnectionIdRetired)


def fall_silent(connection: Connection, *, now: float) -> None:
    """Seal a server's connection whose whole process will be carried to another host.

    Args:
        connection: The connection. It sends, reads and reports nothing any more, until
            `resume_after_freeze` here, or `become_copy` and `activate` there.
        now: The current time in seconds.

    Raises:
        SnapshotError: If it cannot be; the text says why. It goes on then.
    """
    if (obstacle := connection_obstacle(connection)) is not None:
        raise SnapshotError(f"the connection cannot be frozen: {obstacle}")
    shut(connection, SealState.FROZEN, now)


def become_copy(connection: Connection) -> None:
    """Take note that a connection which has fallen silent is the copy, on another host.

    Raises:
        SnapshotError: If it is not frozen.
    """
    expect(connection._seal, SealState.FROZEN)
    connection._seal.state = SealState.THAWED
    limit_numbers(connection)


def resume_after_freeze(connection: Connection, *, now: float) -> None:
    """Let a frozen connection go on, because its copy never will.

    Args:
        connection: The connection.
        now: The current time in seconds.

    Raises:
        SnapshotError: If it is not frozen.
    """
    seal = connection._seal
    expect(seal, SealState.FROZEN)
    seal.state = SealState.OPEN
    first = connection._packet_number
    connection._packet_number += RESERVED_NUMBERS
    seal.resumed_at = connection._packet_number
    if isinstance(connection._loss, MigratingRecovery):
        connection._loss.never_sent = range(first, first + RESERVED_NUMBERS)
        connection._loss.on_never_sent = partial(_give_up, connection)
    connection._probe_pending = True  # its acknowledgement allows the next freeze
    connection._pacing_at = None
    _let_time_run(connection, now)
    connection._close_at = now + connection._idle_timeout()


def activate(connection: Connection, *, now: float) -> None:
    """Let a thawed connection live, until its reserved packet numbers are used up.

    Collect events, datagrams and the timer then.

    Args:
        connection: The connection.
        now: The current time in seconds.

    Raises:
        SnapshotError: If it is not one that was thawed and is not active yet.
    """
    expect(connection._seal, SealState.THAWED)
    connection._seal.state = SealState.PROVISIONAL
    _let_time_run(connection, now)


def commit(connection: Connection) -> None:
    """Tell an active copy that its source is gone for good; send what was held back then.

    Raises:
        SnapshotError: If it is not an active copy.
    """
    expect(connection._seal, SealState.PROVISIONAL)
    connection._seal.state = SealState.OPEN
    connection._seal.first_forbidden = None


def shut(connection: Connection, state: SealState, now: float) -> None:
    """Let time stand still for a connection, from now on."""
    connection._seal.state = state
    connection._seal.silent_since = now


def limit_numbers(connection: Connection) -> None:
    """Let a copy use the packet numbers that its source will skip, and no others."""
    connection._seal.first_forbidden = connection._packet_number + RESERVED_NUMBERS


def connection_obstacle(connection: Connection) -> str | None:
    """Return why a connection cannot be frozen, in words; None if it can."""
    seal = connection._seal
    if connection._is_client:
        return "it is a client's, and only servers move"
    if seal.state is SealState.PROVISIONAL:
        return "it is a copy whose source may come back; commit it first"
    if seal.state is not SealState.OPEN:
        return f"it is {seal.state.value} already"
    if not connection._handshake_confirmed:
        return "its handshake is not confirmed; close it, or wait"
    if connection._state is not QuicConnectionState.CONNECTED or connection._close_pending:
        return "it is being closed"
    if seal.resumed_at > connection._spaces[_ONE_RTT].largest_acked_packet:
        return "the client has not been heard of since it was resumed; try again in a round trip"
    return None


def _give_up(connection: Connection) -> None:
    """Close a connection whose client has dealt with the copy: it knows what this side does not."""
    connection.close(
        error_code=QuicErrorCode.INTERNAL_ERROR,
        frame_type=QuicFrameType.ACK,
        reason_phrase="the connection has lived on another host, which is gone",
    )


def expect(seal: Seal, state: SealState) -> None:
    """Check the state of a connection.

    Raises:
        SnapshotError: If it is another one.
    """
    if seal.state is not state:
        raise SnapshotError(f"the connection is {seal.state.value}, not {state.value}")


def _let_time_run(connection: Connection, now: float) -> None:
    """Let a connection go on that was silent: what was due in 0.2 s then is due in 0.2 s."""
    pause = now - connection._seal.silent_since
    assert connection._close_at is not None, "the idle timer runs from the first datagram on"
    connection._close_at += pause
    postpone_flight(connection, pause, now)
    for path in connection._network_paths:
        if path.validation_deadline is not None:
            path.validation_deadline += pause
    if connection._server is not None:
        connection._server.postpone(pause)
