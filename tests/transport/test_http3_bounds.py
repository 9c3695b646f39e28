"""What a peer can make HTTP/3 keep, and what may be sent, has an end."""

from __future__ import annotations

from contextlib import suppress

import pytest
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import ErrorCode, FrameType, H3Stream, StreamType
from http3_pair import GET, OK, Side, both
from simulated_pair import Pair, pair

from quicferry.lab.simulation import Endpoint
from quicferry.transport import Http3Connection, sendable_fields

LIMIT = 256 * 1024
SAFETY = 64 * 1024
CONTROL = 2
"""The first one-way stream of a client."""


def endless(it: Pair, sender: Endpoint, stream_id: int, *head: int) -> None:
    """Begin a frame that never ends, and send what may be sent of a megabyte of it."""
    beginning = b"".join(map(encode_uint_var, (*head, 1 << 40)))
    with suppress(ValueError):  # the sender is told to stop
        for piece in (beginning, *[bytes(64 * 1024)] * 16):
            sender.connection.send_stream_data(stream_id, piece)
            sender.flush()
            it.network.run_for(0.1)


def kept(side: Side) -> int:
    """Return how many bytes a side keeps of frames whose end has not come."""
    streams: dict[int, H3Stream] = vars(side.http)["_stream"]
    return sum(len(stream.buffer) for stream in streams.values())


def test_request_with_an_endless_header_is_answered_at_once() -> None:
    with both(client=False) as it:
        stream_id = it.theirs.endpoint.connection.get_next_available_stream_id()
        quic = it.theirs.endpoint.connection
        quic.send_stream_data(stream_id, encode_uint_var(FrameType.HEADERS))
        quic.send_stream_data(stream_id, encode_uint_var(LIMIT + 1))
        it.settle()
        assert dict(it.theirs.headers[stream_id])[b":status"] == b"431"
        assert stream_id in it.theirs.ended
        assert it.theirs.codes[stream_id] == {ErrorCode.H3_NO_ERROR}
        assert "larger than" in it.ours.malformed[stream_id]
        assert kept(it.ours) == 0
        beside = quic.get_next_available_stream_id()
        it.send(beside, GET)
        assert beside in it.ours.ended
        assert it.lives


@pytest.mark.parametrize("client", [True, False])
def test_field_section_that_is_large_only_when_it_is_decompressed(client: bool) -> None:
    fields = [
        (b"content-security-policy", b"script-src 'none'; object-src 'none'; base-uri 'none'")
    ]
    with both(client=client) as it:
        opener = it.ours if client else it.theirs
        stream_id = opener.endpoint.connection.get_next_available_stream_id()
        if client:
            it.ours.http.send_headers(stream_id, GET, True)
            it.settle()
        it.send(stream_id, [*(OK if client else GET), *fields * 4000])
        assert "larger than" in it.ours.malformed[stream_id]
        if not client:
            assert dict(it.theirs.headers[stream_id])[b":status"] == b"431"
        assert it.lives


def test_response_with_an_endless_header_is_given_up() -> None:
    with both(client=True) as it:
        stream_id = it.ours.endpoint.connection.get_next_available_stream_id()
        it.ours.http.send_headers(stream_id, GET, True)
        it.settle()
        endless(it.it, it.theirs.endpoint, stream_id, FrameType.HEADERS)
        assert "larger than" in it.ours.malformed[stream_id]
        assert kept(it.ours) == 0
        assert it.lives


@pytest.mark.parametrize("client", [True, False])
def test_endless_settings_end_the_connection(client: bool) -> None:
    with pair() as it:
        receiver, sender = (it.client, it.server) if client else (it.server, it.client)
        receiver.application = side = Side(receiver, Http3Connection(receiver.connection))
        control = sender.connection.get_next_available_stream_id(is_unidirectional=True)
        endless(it, sender, control, StreamType.CONTROL, FrameType.SETTINGS)
        reason = receiver.migrating.close_reason
        assert reason is not None
        assert reason.error_code == ErrorCode.H3_EXCESSIVE_LOAD
        assert kept(side) <= SAFETY


def test_frames_of_unknown_kinds_cost_nothing() -> None:
    with both(client=False) as it:
        endless(it.it, it.theirs.endpoint, CONTROL, 0x21)
        request = it.theirs.endpoint.connection.get_next_available_stream_id()
        endless(it.it, it.theirs.endpoint, request, 0x21)
        assert kept(it.ours) == 0
        assert it.lives


def test_large_header_is_taken() -> None:
    with both(client=False) as it:
        stream_id = it.theirs.endpoint.connection.get_next_available_stream_id()
        fields = [(b"x-%d" % number, b"~" * 60_000) for number in range(3)]
        it.send(stream_id, [*GET, *fields])
        assert it.ours.headers[stream_id][-3:] == fields


@pytest.mark.parametrize(
    "field", [(b"x-large", b"x" * 65536), (b"x" * 65536, b"1"), (b":path", b"/" + b"x" * 65535)]
)
def test_field_that_cannot_be_sent_is_refused_before_anything_is(
    field: tuple[bytes, bytes],
) -> None:
    head = [each for each in GET if each[0] != field[0]]
    with pytest.raises(ValueError, match="longer than the 65535 bytes"):
        sendable_fields("request", [*head, field])
