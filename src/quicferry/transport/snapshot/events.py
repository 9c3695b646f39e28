"""What waits for the application: events that a snapshot carries, as records and back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from aioquic.quic import events

from ..connection import Connection
from .format import SnapshotError
from .records import EventState

CARRIED_EVENTS = (
    events.StreamDataReceived,
    events.StreamReset,
    events.StopSendingReceived,
    events.DatagramFrameReceived,
    events.PingAcknowledged,
)


def unread_events(connection: Connection, unused: Sequence[events.QuicEvent]) -> None:
    """Put events back that the application was handed and has not used.

    They come again before those that it has not collected, and `freeze` carries them.

    Args:
        connection: The connection.
        unused: The events, in the order in which they came.

    Raises:
        ValueError: If one of them is of a kind that is not carried; nothing has changed then.
        SnapshotError: If the connection is frozen already, or thawed and not active.
    """
    for event in unused:
        if not isinstance(event, CARRIED_EVENTS):
            raise ValueError(f"{type(event).__name__} cannot be put back; act upon it, or drop it")
    if connection.is_sealed:
        raise SnapshotError("events are put back before the connection is frozen, not after")
    connection._events.extendleft(reversed(unused))


def capture_events(undelivered: Iterable[events.QuicEvent]) -> tuple[EventState, ...]:
    """Return the events of the kinds that are carried."""
    states = []
    for event in undelivered:
        match event:
            case events.StreamDataReceived(data=data, end_stream=is_end, stream_id=stream_id):
                states.append(EventState(0, stream_id, 0, bytes(data), is_end))
            case events.StreamReset(error_code=code, stream_id=stream_id):
                states.append(EventState(1, stream_id, code, b"", False))
            case events.StopSendingReceived(error_code=code, stream_id=stream_id):
                states.append(EventState(2, stream_id, code, b"", False))
            case events.DatagramFrameReceived(data=data):
                states.append(EventState(3, 0, 0, bytes(data), False))
            case events.PingAcknowledged(uid=uid):
                states.append(EventState(4, uid, 0, b"", False))
    return tuple(states)


def restore_events(states: Iterable[EventState]) -> deque[events.QuicEvent]:
    """Return the events of records."""
    makers = (
        lambda s: events.StreamDataReceived(s.data, s.is_end, s.number),
        lambda s: events.StreamReset(s.code, s.number),
        lambda s: events.StopSendingReceived(s.code, s.number),
        lambda s: events.DatagramFrameReceived(s.data),
        lambda s: events.PingAcknowledged(s.number),
    )
    return deque(makers[state.kind](state) for state in states)
