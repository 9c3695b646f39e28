"""What a peer can make HTTP/3 keep, and what may be sent, has an end."""

from __future__ import annotations

from contextlib import suppress
from typing import Any
from unittest.mock import patch

import pylsqpack
import pytest
from aioquic.buffer import Buffer, encode_uint_var
from aioquic.h3.connection import (
    ErrorCode,
    FrameType,
    H3Stream,
    StreamType,
    encode_frame,
)
from aioquic.h3.events import DataReceived, H3Event, Headers, HeadersReceived
from aioquic.quic.events import StreamDataReceived
from http3_pair import GET, OK, POST, Side, both
from hypothesis import given
from hypothesis import strategies as st
from quicferry_lab.simulation import Endpoint, server_configuration
from simulated_pair import Pair, pair

from quicferry.transport import Connection, Http3Connection, sendable_fields
from quicferry.transport.http3.messages import MAX_FIELDS
from quicferry.transport.http3.qpack import count_fields

LIMIT = 64 * 1024
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
    fields = [(b"x-large", b"e" * 900)]
    with both(client=client) as it:
        opener = it.ours if client else it.theirs
        stream_id = opener.endpoint.connection.get_next_available_stream_id()
        if client:
            it.ours.http.send_headers(stream_id, GET, True)
            it.settle()
        it.send(stream_id, [*(OK if client else GET), *fields * 90])
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
        fields = [(b"x-%d" % number, b"~" * 20_000) for number in range(3)]
        it.send(stream_id, [*GET, *fields])
        assert it.ours.headers[stream_id][-3:] == fields


def test_as_many_fields_are_taken_as_are_allowed() -> None:
    with both(client=False) as it:
        fields = [(b"x-%d" % number, b"1") for number in range(MAX_FIELDS - len(GET))]
        it.send(0, [*GET, *fields])
        assert it.ours.headers[0] == [*GET, *fields]
        it.send(4, [*GET, *fields, (b"x-more", b"1")])
        assert "more than 200 fields" in it.ours.malformed[4]
        assert dict(it.theirs.headers[4])[b":status"] == b"431"
        assert it.lives


def section(fields: int) -> bytes:
    """A field section in which each byte stands for a field of 76 bytes, of the static table."""
    return b"\0\0" + b"\xd1\xd7\xd8" + b"\xff\x16" * fields


@pytest.mark.parametrize("client", [True, False])
def test_many_fields_in_few_bytes_are_not_expanded(client: bool) -> None:
    with both(client=client) as it:
        if client:
            it.ours.http.send_headers(0, GET, True)
            it.settle()
        decoder = vars(it.ours.http)["_decoder"]
        with patch.object(it.ours.http, "_decoder", wraps=decoder) as watched:
            frame = encode_frame(FrameType.HEADERS, section(30_000))
            it.theirs.endpoint.connection.send_stream_data(0, frame)
            it.settle()
            assert not watched.feed_header.called
        assert "more than 200 fields" in it.ours.malformed[0]
        if client:  # the server's encoder hears that nobody decodes it (RFC 9204 4.4.2)
            assert vars(it.theirs.http)["_decoder_bytes_received"] == 1
        it.send(4, GET) if not client else None
        assert client or 4 in it.ours.ended
        assert it.lives


FIELD_LISTS = st.lists(
    st.tuples(
        st.sampled_from([b":method", b":path", b"accept", b"x-own", b"content-length"]),
        st.binary(max_size=300) | st.sampled_from([b"GET", b"/", b"*/*", b"0"]),
    ),
    max_size=40,
)


@given(FIELD_LISTS, st.booleans())
def test_fields_are_counted_as_they_are_decoded(fields: Headers, dynamic: bool) -> None:
    encoder = pylsqpack.Encoder()
    if dynamic:
        encoder.apply_settings(4096, 16)
        encoder.encode(0, fields)
    _, encoded = encoder.encode(4, fields)
    assert count_fields(encoded, 1000) == len(fields)
    assert count_fields(encoded, 5) == min(5, len(fields))


@given(st.binary(max_size=200))
def test_counting_survives_anything(data: bytes) -> None:
    assert 0 <= count_fields(data, 50) <= 50
    assert count_fields(data + b"\xff" * 70_000, 50) <= 50


class Copies:
    """Counts the bytes that HTTP/3 is made to look at."""

    def __init__(self) -> None:
        self.size = 0

    def __call__(self, *, data: bytes = b"", **more: Any) -> Buffer:
        self.size += len(data)
        return Buffer(data=data, **more)


@pytest.mark.parametrize("client", [True, False])
@pytest.mark.parametrize("kind", ["header", "settings", "push"])
def test_a_frame_in_single_bytes_is_looked_at_once(client: bool, kind: str) -> None:
    """A byte that comes alone costs the same wherever it is in its frame."""
    if kind == "push" and not client:
        return
    with both(client=client) as it:
        if kind == "settings":
            stream_id = 3 if client else 2
            stream = vars(it.ours.http)["_stream"].pop(stream_id)
            vars(it.ours.http)["_peer_control_stream_id"] = None
            vars(it.ours.http)["_settings_received"] = False
            assert stream.stream_type == StreamType.CONTROL
            content = b"".join(encode_uint_var(0x21 + 31 * n) + b"\1" for n in range(300))
            data = bytes([StreamType.CONTROL]) + encode_frame(FrameType.SETTINGS, content)
        else:
            _, head = pylsqpack.Encoder().encode(
                0, [*(OK if client else GET), (b"x", b"~" * 20000)]
            )
            data = encode_frame(FrameType.HEADERS, head)
            stream_id = 15 if kind == "push" else 0
            if kind == "push":
                data = bytes([StreamType.PUSH, 0]) + data
        copies = Copies()
        events: list[H3Event] = []
        with patch("aioquic.h3.connection.Buffer", copies):
            for place in range(len(data)):
                event = StreamDataReceived(data[place : place + 1], False, stream_id)
                events += it.ours.http.handle_event(event)
        assert copies.size < 4 * len(data)
        assert kept(it.ours) == 0
        if kind == "settings":
            assert len(it.ours.http.received_settings or ()) == 300
        else:
            assert [type(event) for event in events] == [HeadersReceived]


def test_what_follows_a_blocked_header_is_kept_once_and_handed_on() -> None:
    """A header that refers to what has not come yet (RFC 9204 2.1.2) holds its stream up."""
    with both(client=True) as it:
        it.ours.http.send_headers(0, GET, True)
        it.settle()
        encoder = pylsqpack.Encoder()
        encoder.apply_settings(4096, 16)
        head = [*OK, (b"x-own", b"a value that is worth an entry")]
        first, _ = encoder.encode(0, head)
        second, encoded = encoder.encode(0, head)
        ours = it.ours.http
        data = encode_frame(FrameType.HEADERS, encoded) + encode_frame(FrameType.DATA, b"x" * 5000)
        copies = Copies()
        with patch("aioquic.h3.connection.Buffer", copies):
            for place in range(len(data)):
                event = StreamDataReceived(data[place : place + 1], False, 0)
                assert ours.handle_event(event) == []
        assert ours.handle_event(StreamDataReceived(b"", True, 0)) == []
        assert copies.size < 4 * len(data)
        assert isinstance(ours, Http3Connection)
        assert ours.blocked(0) > 5000
        encoder_stream = vars(ours)["_peer_encoder_stream_id"]
        events = ours.handle_event(StreamDataReceived(first + second, False, encoder_stream))
        assert [type(event) for event in events] == [HeadersReceived, DataReceived]
        assert isinstance(events[0], HeadersReceived)
        assert events[0].headers == head
        assert events[1] == DataReceived(b"x" * 5000, 0, True)
        assert ours.blocked(0) == 0


@pytest.mark.parametrize("kind", [FrameType.DATA, 0x21])
def test_a_flood_of_empty_frames_is_excessive_load(kind: int) -> None:
    with both(client=False) as it:
        it.send(0, POST, ends=False)
        quic = it.theirs.endpoint.connection
        quic.send_stream_data(0, encode_frame(kind, b"") * 900)
        it.settle()
        assert it.lives
        quic.send_stream_data(0, encode_frame(kind, b"") * 900)
        it.settle()
        reason = it.theirs.endpoint.migrating.close_reason
        assert reason is not None
        assert reason.error_code == ErrorCode.H3_EXCESSIVE_LOAD


def test_a_server_opens_no_stream_for_requests() -> None:
    with both(client=True) as it:
        it.theirs.endpoint.connection.send_stream_data(1, encode_frame(FrameType.HEADERS, b"\0\0"))
        it.settle()
        reason = it.theirs.endpoint.migrating.close_reason
        assert reason is not None
        assert reason.error_code == ErrorCode.H3_STREAM_CREATION_ERROR


def test_what_looks_like_webtransport_is_skipped() -> None:
    """Nobody has offered it, so it is a frame of an unknown kind (RFC 9114 9)."""
    with both(client=False) as it:
        it.send(0, POST, ends=False)
        quic = it.theirs.endpoint.connection
        quic.send_stream_data(0, encode_frame(FrameType.WEBTRANSPORT_STREAM, b"to be skipped"))
        quic.send_stream_data(0, encode_frame(FrameType.DATA, b"body"), end_stream=True)
        it.settle()
        assert it.ours.bodies == {0: b"body"}
        assert it.ours.ended == {0}


@pytest.mark.parametrize(
    "field", [(b"x-large", b"x" * 65536), (b"x" * 65536, b"1"), (b":path", b"/" + b"x" * 65535)]
)
def test_field_that_cannot_be_sent_is_refused_before_anything_is(
    field: tuple[bytes, bytes],
) -> None:
    head = [each for each in GET if each[0] != field[0]]
    with pytest.raises(ValueError, match="longer than the 65535 bytes"):
        sendable_fields("request", [*head, field])


def test_hundreds_of_small_frames_in_a_packet_are_one_event() -> None:
    with both(client=False) as it:
        it.send(0, POST, ends=False)
        data = encode_frame(FrameType.DATA, b"x") * 400
        events = it.ours.http.handle_event(StreamDataReceived(data, False, 0))
        assert events == [DataReceived(b"x" * 400, 0, False)]


FRAMES = st.lists(
    st.tuples(
        st.sampled_from([FrameType.DATA] * 4 + [0x21]),
        st.sampled_from([0, 1, 2, 62, 63, 64, 65, 300]),
    ),
    max_size=30,
)


@given(FRAMES, st.lists(st.integers(1, 200), max_size=20), st.booleans(), st.booleans())
def test_a_body_is_the_same_however_it_is_cut(
    frames: list[tuple[int, int]], cuts: list[int], announced: bool, ends_alone: bool
) -> None:
    body = b"".join(
        bytes([number % 256]) * size
        for number, (kind, size) in enumerate(frames)
        if kind == FrameType.DATA
    )
    length = [(b"content-length", b"%d" % len(body))] if announced else []
    _, head = pylsqpack.Encoder().encode(0, [*POST, *length])
    whole = encode_frame(FrameType.HEADERS, head) + b"".join(
        encode_frame(kind, bytes([number % 256]) * size)
        for number, (kind, size) in enumerate(frames)
    )
    pieces = []
    for size in cuts:
        pieces.append(whole[:size])
        whole = whole[size:]
    pieces += [whole, b""] if ends_alone else [whole]
    connection = Connection(
        configuration=server_configuration(None), original_destination_connection_id=bytes(8)
    )
    http = Http3Connection(connection)
    received, ended = b"", 0
    for number, piece in enumerate(pieces, 1):
        for event in http.handle_event(StreamDataReceived(piece, number == len(pieces), 0)):
            assert isinstance(event, HeadersReceived | DataReceived)
            ended += event.stream_ended
            received += event.data if isinstance(event, DataReceived) else b""
    assert connection.close_reason is None
    assert (received, ended) == (body, 1)
