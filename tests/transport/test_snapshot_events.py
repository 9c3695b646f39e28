"""Events that an application was handed and gives back before the freeze."""

from __future__ import annotations

import pytest
from aioquic.quic import events
from simulated_pair import pair

from quicferry.transport import (
    SnapshotError,
    activate,
    freeze,
    resume_after_freeze,
    thaw,
    unread_events,
)

UNUSED: tuple[events.QuicEvent, ...] = (
    events.StreamDataReceived(data=b"first", end_stream=False, stream_id=0),
    events.StreamDataReceived(data=b"second", end_stream=True, stream_id=0),
    events.StreamReset(error_code=7, stream_id=4),
    events.StopSendingReceived(error_code=8, stream_id=4),
    events.DatagramFrameReceived(data=b"datagram"),
    events.PingAcknowledged(uid=9),
)
LATER = events.StreamDataReceived(data=b"later", end_stream=False, stream_id=8)


def test_they_come_again_before_the_others() -> None:
    with pair() as it:
        server = it.server.migrating
        unread_events(server, [LATER])
        unread_events(server, UNUSED)
        unread_events(server, ())
        assert list(iter(server.next_event, None)) == [*UNUSED, LATER]


def test_a_snapshot_carries_them() -> None:
    with pair() as it:
        server, now = it.server.migrating, it.network.now
        unread_events(server, [LATER])
        unread_events(server, UNUSED)
        copy = thaw(freeze(server, now=now), configuration=server.configuration, now=now)
        activate(copy, now=now)
        assert list(iter(copy.next_event, None)) == [*UNUSED, LATER]


def test_what_a_client_sent_is_served_by_the_copy() -> None:
    """The application looks at a request, and leaves it to the next server."""
    with pair() as it:
        client, server, now = it.client.connection, it.server.migrating, it.network.now
        client.send_stream_data(0, b"request", end_stream=True)
        for data, _ in client.datagrams_to_send(now):
            server.receive_datagram(data, it.client.external, now)
        request = server.next_event()
        assert request == events.StreamDataReceived(b"request", True, 0)
        unread_events(server, [request])
        copy = thaw(freeze(server, now=now), configuration=server.configuration, now=now)
        activate(copy, now=now)
        assert copy.next_event() == request
        copy.send_stream_data(0, b"response", end_stream=True)
        for data, _ in copy.datagrams_to_send(now):
            client.receive_datagram(data, it.host.address, now)
        assert events.StreamDataReceived(b"response", True, 0) in iter(client.next_event, None)


@pytest.mark.parametrize(
    "event",
    [
        events.ConnectionIdIssued(connection_id=b"12345678"),
        events.HandshakeCompleted(None, early_data_accepted=False, session_resumed=False),
        events.ConnectionTerminated(0, None, "the end"),
    ],
)
def test_no_other_kind_is_taken_back(event: events.QuicEvent) -> None:
    with pair() as it:
        server = it.server.migrating
        with pytest.raises(ValueError, match=type(event).__name__):
            unread_events(server, [LATER, event])
        assert server.next_event() is None


def test_not_when_it_is_too_late() -> None:
    """The snapshot would lack them."""
    with pair() as it:
        server, now = it.server.migrating, it.network.now
        data = freeze(server, now=now)
        copy = thaw(data, configuration=server.configuration, now=now)
        for connection in (server, copy):
            with pytest.raises(SnapshotError, match="before"):
                unread_events(connection, [LATER])
        resume_after_freeze(server, now=now)
        unread_events(server, [LATER])
        assert server.next_event() == LATER
