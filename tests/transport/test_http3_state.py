"""HTTP/3 of a server goes on elsewhere wherever it was, and has no state that cannot be carried."""

from __future__ import annotations

import dataclasses
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import msgpack
import pylsqpack
import pytest
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import (
    ErrorCode,
    FrameType,
    H3Connection,
    Setting,
    StreamType,
    encode_frame,
    encode_settings,
)
from aioquic.h3.events import (
    DataReceived,
    H3Event,
    Headers,
    HeadersReceived,
    PushPromiseReceived,
)
from aioquic.quic import events
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quicferry_lab.simulation import Endpoint
from simulated_pair import Pair, pair

from quicferry.transport import (
    Connection,
    Http3Connection,
    MessageMalformed,
    SnapshotError,
    activate,
    commit,
    freeze,
    thaw,
)
from quicferry.transport.http3.state import HTTP3, Http3State, Http3StreamState
from quicferry.transport.snapshot.format import MAX_SNAPSHOT_SIZE, decode

HEADER = struct.Struct("!4sHI")
POST = [
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":authority", b"server.example"),
    (b":path", b"/path"),
    (b"x-test", b"value"),
]
GET = [(b":method", b"GET"), *POST[1:]]
OK = [(b":status", b"200"), (b"x-test", b"value")]
UNKNOWN_FRAME = 0x21


@dataclass
class Message:
    """What has come on one stream."""

    headers: list[Headers] = field(default_factory=list)
    body: bytes = b""
    ended: bool = False


class Side:
    """HTTP/3 at one end of a simulated connection, and what it has received."""

    def __init__(self, endpoint: Endpoint, http: H3Connection) -> None:
        self.endpoint = endpoint
        self.http = http
        self.messages: dict[int, Message] = {}
        self.promises: list[PushPromiseReceived] = []
        self.malformed: list[MessageMalformed] = []
        endpoint.application = self

    def handle_event(self, event: events.QuicEvent) -> None:
        for http_event in self.http.handle_event(event):
            self._note(http_event)

    def _note(self, event: H3Event) -> None:
        if isinstance(event, PushPromiseReceived):
            self.promises.append(event)
        elif isinstance(event, MessageMalformed):
            self.malformed.append(event)
        elif isinstance(event, HeadersReceived | DataReceived):
            message = self.messages.setdefault(event.stream_id, Message())
            assert not message.ended
            message.ended = event.stream_ended
            if isinstance(event, HeadersReceived):
                message.headers.append(event.headers)
            else:
                message.body += event.data


@dataclass
class Http3Pair:
    """A client whose bytes are those that a test writes, and a server with HTTP/3."""

    it: Pair
    server: Side

    @property
    def quic(self) -> Connection:
        return self.it.server.migrating

    def write(self, stream_id: int, data: bytes, *, ends: bool = False) -> None:
        """Send bytes from the client, and let the server read them."""
        self.it.client.connection.send_stream_data(stream_id, data, end_stream=ends)
        self.settle()

    def settle(self) -> None:
        self.it.client.flush()
        self.it.server.flush()
        self.it.network.run_for(0.1)

    def carry(self) -> None:
        """Put a copy of the server's connection and of its HTTP/3 state in their place."""
        now = self.it.network.now
        state = self.http3.export()
        data = freeze(self.quic, now=now)
        copy = thaw(data, configuration=self.quic.configuration, now=now)
        self.server.http = Http3Connection(copy, state=state)
        assert self.http3.export() == state
        activate(copy, now=now)
        commit(copy)
        self.it.server.connection = copy

    @property
    def http3(self) -> Http3Connection:
        assert isinstance(self.server.http, Http3Connection)
        return self.server.http

    @property
    def error(self) -> int | None:
        """The error that the client was told; None while the connection lives."""
        self.settle()
        reason = self.it.client.migrating.close_reason
        return None if reason is None else reason.error_code


@contextmanager
def http3_pair() -> Iterator[Http3Pair]:
    with pair() as it:
        it.client.application = None
        server = Side(it.server, Http3Connection(it.server.migrating))
        this = Http3Pair(it, server)
        this.settle()
        yield this


def encoded(headers: Headers) -> bytes:
    """A HEADERS frame that uses the static table only."""
    return encode_frame(FrameType.HEADERS, pylsqpack.Encoder().encode(0, headers)[1])


def bidirectional() -> Iterator[int]:
    """Streams of a client, one after the other."""
    stream_id = 0
    while True:
        yield stream_id
        stream_id += 4


CONTROL, ENCODER, DECODER = 2, 6, 10
"""The first streams of a client."""


# Every point of a request's arrival


LONG = (b"x-long", b"x" * 70)
REQUEST = b"".join(
    (
        encode_frame(UNKNOWN_FRAME, b"grease"),
        encoded([*POST, (b"content-length", b"15"), LONG]),
        encode_frame(FrameType.DATA, b"first, "),
        encode_frame(UNKNOWN_FRAME, b"more grease"),
        encode_frame(FrameType.DATA, b""),
        encode_frame(FrameType.DATA, b"second, "),
        encoded([(b"x-trailer", b"last")]),
    )
)


def test_a_request_that_is_split_anywhere() -> None:
    with http3_pair() as this:
        for stream_id, split in zip(bidirectional(), range(len(REQUEST) + 1), strict=False):
            this.write(stream_id, REQUEST[:split])
            this.carry()
            this.write(stream_id, REQUEST[split:], ends=True)
            message = this.server.messages[stream_id]
            assert message.headers == [
                [*POST, (b"content-length", b"15"), LONG],
                [(b"x-trailer", b"last")],
            ], split
            assert (message.body, message.ended) == (b"first, second, ", True), split
            this.http3.send_headers(stream_id, OK, end_stream=True)
        assert this.error is None
        assert this.http3.export() == this.http3.export()
        assert len(this.http3.export()) < 400  # no stream is left behind


def test_a_request_that_is_carried_after_each_byte() -> None:
    with http3_pair() as this:
        for place in range(len(REQUEST)):
            this.write(0, REQUEST[place : place + 1])
            this.carry()
        this.write(0, b"", ends=True)
        assert this.server.messages[0].body == b"first, second, "
        assert this.server.messages[0].ended


def test_requests_that_wait_as_events_are_carried_in_the_snapshot() -> None:
    with http3_pair() as this:
        for stream_id, split in zip(bidirectional(), range(1, len(REQUEST)), strict=False):
            this.it.server.application = None
            this.it.client.connection.send_stream_data(stream_id, REQUEST[:split])
            for data, _ in this.it.client.connection.datagrams_to_send(this.it.network.now):
                this.quic.receive_datagram(data, this.it.client.external, this.it.network.now)
            this.carry()
            this.it.server.application = this.server
            this.write(stream_id, REQUEST[split:], ends=True)
            assert this.server.messages[stream_id].body == b"first, second, "
            this.http3.send_headers(stream_id, OK, end_stream=True)  # it makes room for others


def test_the_clients_control_stream_split_anywhere() -> None:
    told: dict[int, int] = {
        Setting.QPACK_MAX_TABLE_CAPACITY: 4096,
        Setting.MAX_FIELD_SECTION_SIZE: 1 << 20,
    }
    control = b"".join(
        (
            encode_uint_var(StreamType.CONTROL),
            encode_frame(FrameType.SETTINGS, encode_settings(told)),
            encode_frame(FrameType.MAX_PUSH_ID, encode_uint_var(100)),
            encode_frame(UNKNOWN_FRAME, b"grease"),
        )
    )
    for split in range(len(control) + 1):
        with http3_pair() as this:
            this.write(CONTROL, control[:split])
            this.carry()
            this.write(CONTROL, control[split:])
            assert this.http3.received_settings == told, split
            this.carry()
            this.write(CONTROL, encode_frame(FrameType.MAX_PUSH_ID, encode_uint_var(99)))
            assert this.error == ErrorCode.H3_ID_ERROR, split  # it must not become smaller


def test_what_the_client_may_not_repeat() -> None:
    empty = encode_frame(FrameType.SETTINGS, b"")
    for stream_type, then, error in (
        (StreamType.CONTROL, (CONTROL, empty), ErrorCode.H3_FRAME_UNEXPECTED),
        *(
            (kind, (14, encode_uint_var(kind)), ErrorCode.H3_STREAM_CREATION_ERROR)
            for kind in (StreamType.CONTROL, StreamType.QPACK_ENCODER, StreamType.QPACK_DECODER)
        ),
    ):
        with http3_pair() as this:
            first = encode_uint_var(stream_type)
            this.write(CONTROL, first + empty if stream_type == StreamType.CONTROL else first)
            this.carry()
            assert this.error is None
            this.write(*then)
            assert this.error == error


def test_a_cancellation_on_the_decoder_stream_split_anywhere() -> None:
    cancellations = b"\x41" + b"\x7f\x10" + b"\x7f\xff\x01" + b"\x7f\x80\x01" + b"\x7e"
    for split in range(len(cancellations) + 1):
        with http3_pair() as this:
            this.write(DECODER, encode_uint_var(StreamType.QPACK_DECODER) + cancellations[:split])
            this.carry()
            this.write(DECODER, cancellations[split:])
            assert this.error is None, split
            this.write(DECODER, b"\x84")  # an acknowledgement of nothing
            assert this.error == ErrorCode.QPACK_DECODER_STREAM_ERROR


def test_a_decoder_instruction_without_an_end() -> None:
    with http3_pair() as this:
        this.write(DECODER, encode_uint_var(StreamType.QPACK_DECODER) + b"\x7f" + b"\x80" * 30)
        assert this.error == ErrorCode.QPACK_DECODER_STREAM_ERROR


@pytest.mark.parametrize("rest", [b"four", b"five5", b"sixsix"])
def test_the_announced_length_is_still_checked(rest: bytes) -> None:
    with http3_pair() as this:
        this.write(0, encoded([*POST, (b"content-length", b"10")]))
        this.write(0, encode_uint_var(FrameType.DATA) + encode_uint_var(5 + len(rest)) + b"five!")
        this.carry()
        this.write(0, rest, ends=True)
        assert this.server.messages[0].ended == (len(rest) == 5)
        assert len(this.server.malformed) == (len(rest) != 5)


def test_a_length_that_no_number_holds() -> None:
    with http3_pair() as this:
        this.write(0, encoded([*POST, (b"content-length", b"9" * 50)]))
        this.carry()
        this.write(0, encode_frame(FrameType.DATA, b"short"), ends=True)
        assert [event.stream_id for event in this.server.malformed] == [0]


# Responses


@contextmanager
def talking_pair() -> Iterator[tuple[Http3Pair, Side]]:
    """With a client of aioquic's own."""
    with pair() as it:
        client = Side(it.client, H3Connection(it.client.connection))
        this = Http3Pair(it, Side(it.server, Http3Connection(it.server.migrating)))
        this.settle()
        yield this, client


def test_a_response_goes_on_after_each_part() -> None:
    with talking_pair() as (this, client):
        steps: list[Callable[[], None]] = [
            lambda: this.http3.send_headers(0, [(b":status", b"103")]),
            lambda: this.http3.send_headers(0, OK),
            lambda: this.http3.send_data(0, b"one, ", end_stream=False),
            lambda: this.http3.send_data(0, b"two", end_stream=False),
            lambda: this.http3.send_headers(0, [(b"x-trailer", b"last")], end_stream=True),
        ]
        client.http.send_headers(0, GET, end_stream=True)
        this.settle()
        for step in steps:
            this.carry()
            step()
        this.settle()
        message = client.messages[0]
        assert message.headers == [[(b":status", b"103")], OK, [(b"x-trailer", b"last")]]
        assert (message.body, message.ended) == (b"one, two", True)
        assert requests_in(this.http3.export()) == []


def requests_in(state: bytes) -> list[int]:
    """The streams of requests that are not over."""
    streams = decode(state, Http3State, HTTP3).streams
    return [stream.stream_id for stream in streams if stream.stream_id % 4 == 0]


def test_a_response_that_is_complete_before_its_request() -> None:
    with http3_pair() as this:
        this.write(0, REQUEST[:-5])
        this.http3.send_headers(0, OK, end_stream=True)
        this.carry()
        assert requests_in(this.http3.export()) == [0]
        this.write(0, REQUEST[-5:], ends=True)
        assert requests_in(this.http3.export()) == []
        assert this.error is None


def test_a_frame_that_would_begin_a_session_is_skipped_by_the_copy() -> None:
    with http3_pair() as this:
        this.write(0, encode_frame(FrameType.WEBTRANSPORT_STREAM, b"nobody offered it")[:-5])
        this.carry()
        this.write(0, b"ed it" + REQUEST, ends=True)
        assert this.server.messages[0].ended
        assert this.error is None


def test_pushes_are_counted_on() -> None:
    with talking_pair() as (this, client):
        client.http.send_headers(0, GET, end_stream=True)
        this.settle()
        for number in range(3):
            stream_id = this.http3.send_push_promise(0, GET)
            this.carry()
            this.http3.send_headers(stream_id, OK)
            this.carry()
            this.http3.send_data(stream_id, b"%d" % number, end_stream=True)
            this.settle()
            assert client.messages[stream_id].body == b"%d" % number
        assert [promise.push_id for promise in client.promises] == [0, 1, 2]


def test_construction_writes_only_at_the_beginning() -> None:
    with http3_pair() as this:
        this.it.network.run_for(1)
        state, now = this.http3.export(), this.it.network.now
        copy = thaw(freeze(this.quic, now=now), configuration=this.quic.configuration, now=now)
        activate(copy, now=now)
        Http3Connection(copy, state=state)
        assert not copy.has_data_to_send()


# Ignored requests


@pytest.mark.parametrize("end", ["fin", "reset", "none"])
def test_an_ignored_request(end: str) -> None:
    with http3_pair() as this:
        this.write(0, REQUEST[:20])
        before = len(this.http3.export())
        assert not this.http3.has_request(0)
        this.http3.ignore_request(0)
        assert this.http3.has_request(0)
        for data in (b"no frame", b"of any kind"):
            this.carry()
            this.write(0, data)
        if end == "fin":
            this.write(0, b"", ends=True)
        elif end == "reset":
            this.it.client.connection.reset_stream(0, 0)
            this.settle()
        assert this.http3.has_request(0) == (end == "none")
        assert len(this.http3.export()) < before
        assert this.server.messages == {}
        this.write(4, REQUEST, ends=True)
        assert this.server.messages[4].ended
        assert this.error is None


# No dynamic table


def test_neither_side_uses_a_dynamic_table() -> None:
    with talking_pair() as (this, client):
        settings = client.http.received_settings
        assert settings is not None
        assert settings[Setting.QPACK_MAX_TABLE_CAPACITY] == 0
        assert settings[Setting.QPACK_BLOCKED_STREAMS] == 0
        for stream_id, _ in zip(bidirectional(), range(4), strict=False):
            client.http.send_headers(stream_id, GET, end_stream=True)
            this.settle()
            this.http3.send_headers(stream_id, OK, end_stream=True)
            this.settle()
            assert client.messages[stream_id].headers == [OK]
            assert this.server.messages[stream_id].headers == [GET]
        for http in (client.http, this.http3):
            assert http._encoder_bytes_sent == http._decoder_bytes_sent == 0


def disobedient_encoder() -> tuple[bytes, bytes]:
    """What an encoder sends that uses a table: instructions, and a header that refers to it."""
    encoder = pylsqpack.Encoder()
    instructions = encoder.apply_settings(max_table_capacity=4096, blocked_streams=16)
    for _ in range(3):
        inserted, header = encoder.encode(0, POST)
        instructions += inserted
    assert header[0] != 0  # the Required Insert Count
    return instructions, encode_frame(FrameType.HEADERS, header)


def test_a_client_that_fills_a_table_all_the_same() -> None:
    instructions, _ = disobedient_encoder()
    for end in range(1, len(instructions)):
        with http3_pair() as this:
            this.write(ENCODER, encode_uint_var(StreamType.QPACK_ENCODER) + instructions[:end])
            assert this.error == ErrorCode.QPACK_ENCODER_STREAM_ERROR


def test_a_client_that_refers_to_a_table_all_the_same() -> None:
    _, header = disobedient_encoder()
    with http3_pair() as this:
        this.write(0, header)
        assert this.error == ErrorCode.QPACK_DECOMPRESSION_FAILED


def test_a_capacity_of_nothing_is_harmless() -> None:
    with http3_pair() as this:
        this.write(ENCODER, encode_uint_var(StreamType.QPACK_ENCODER) + b"\x20")
        this.carry()
        this.write(ENCODER, b"\x20")
        assert this.error is None


# What is not exported, and not imported


def test_a_clients_state_is_not_exported() -> None:
    with pair() as it, pytest.raises(SnapshotError, match="only servers move"):
        Http3Connection(it.client.migrating).export()


def test_a_broken_connection_is_not_exported() -> None:
    with http3_pair() as this:
        this.write(0, encode_frame(FrameType.SETTINGS, b""))
        with pytest.raises(SnapshotError, match="broke HTTP/3"):
            this.http3.export()


def test_a_client_does_not_go_on_from_a_servers_state() -> None:
    with http3_pair() as this, pytest.raises(SnapshotError, match="only servers move"):
        Http3Connection(this.it.client.migrating, state=this.http3.export())


def test_a_state_of_another_connection() -> None:
    with http3_pair() as this:
        state = this.http3.export()
    with pair() as it, pytest.raises(SnapshotError, match="not that of this connection"):
        Http3Connection(it.server.migrating, state=state)


def with_checksum(body: bytes) -> bytes:
    return HEADER.pack(b"QFH3", 1, zlib.crc32(body)) + body


@contextmanager
def state_and_attempt() -> Iterator[tuple[bytes, Callable[[bytes], None]]]:
    """A state with something in every field, and what tries to use another one."""
    with talking_pair() as (this, client):
        client.http.send_headers(0, GET)
        this.settle()
        this.http3.send_push_promise(0, GET)
        this.write(4, REQUEST[:20])
        this.write(8, encoded([*POST, (b"content-length", b"10")]) + b"\0\x0afive!")
        this.write(12, b"")
        this.http3.ignore_request(12)
        this.write(DECODER, b"\x7f")
        this.write(14, encode_uint_var(UNKNOWN_FRAME) + b"stream of unknown type")
        state, now = this.http3.export(), this.it.network.now
        data = freeze(this.quic, now=now)

        def attempt(changed: bytes) -> None:
            copy = thaw(data, configuration=this.quic.configuration, now=now)
            try:
                http = Http3Connection(copy, state=changed)
            except SnapshotError:
                return
            activate(copy, now=now)
            for stream_id in (0, 4, 8, 12, 16, CONTROL, ENCODER, DECODER, 14):
                for piece in (b"", b"\0", b"\x01\x05", b"\x40", b"abcd"):
                    http.handle_event(events.StreamDataReceived(piece, False, stream_id))
                http.handle_event(events.StreamDataReceived(b"", True, stream_id))
            http.handle_event(events.StopSendingReceived(0, 0))
            http.handle_event(events.StreamReset(0, 8))

        yield state, attempt


def test_what_cannot_be_a_state() -> None:
    with http3_pair() as this:
        state, now = this.http3.export(), this.it.network.now
        snapshot = freeze(this.quic, now=now)
        copy = thaw(snapshot, configuration=this.quic.configuration, now=now)
        content = msgpack.unpackb(state[HEADER.size :])
        for wrong, text in (
            (b"", "not the HTTP/3 state"),
            (snapshot, "not the HTTP/3 state"),
            (state[:-1], "damaged or incomplete"),
            (state[:4] + b"\0\2" + state[6:], "format version 2"),
            (bytes(MAX_SNAPSHOT_SIZE + 1), "at most"),
            (with_checksum(msgpack.packb({})), "does not hold the fields"),
            (with_settings(content, 4096), "dynamic table"),
        ):
            with pytest.raises(SnapshotError, match=text):
                Http3Connection(copy, state=wrong)
        Http3Connection(copy, state=state)


def test_every_field_is_documented() -> None:
    page = (FilePath(__file__).parents[2] / "docs/reference/http3-state.md").read_text("utf-8")
    documented = {
        section.split(None, 1)[0]: re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        for section in page.split("\n### ")[1:]
    }
    assert documented == {
        record.__name__: [item.name for item in dataclasses.fields(record)]
        for record in (Http3State, Http3StreamState)
    }


def with_settings(content: dict[str, Any], capacity: int) -> bytes:
    sent = [int(Setting.QPACK_MAX_TABLE_CAPACITY), capacity]
    return with_checksum(msgpack.packb(content | {"sent_settings": sent}))


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container and key in a state's content."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in list(items):
        yield value, key
        if isinstance(item, dict | list):
            yield from places(item)


WRONG: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, 3, 4, 2**14, 2**62 - 1, 2**62, 2**64 - 1, -1, 0.0, -1.5),
    *(float("nan"), b"", b"x" * 20, "", "x", [], [1, 2], [0, 0, 0], {}),
)


def test_no_field_can_hold_anything_that_fails_later() -> None:
    with state_and_attempt() as (state, attempt):
        content = msgpack.unpackb(state[HEADER.size :])
        for holder, key in list(places(content)):
            right = holder[key]
            for wrong in WRONG:
                holder[key] = wrong
                attempt(with_checksum(msgpack.packb(content)))
            holder[key] = right
        attempt(with_checksum(msgpack.packb(content)))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.integers(0, 20),
    st.floats(),
    st.binary(max_size=30),
    st.text(max_size=5),
    st.lists(st.integers(0, 100), max_size=6),
)


def test_a_mutated_state_is_refused_or_harmless() -> None:
    with state_and_attempt() as (state, attempt):
        body = state[HEADER.size :]

        @settings(max_examples=300, suppress_health_check=list(HealthCheck), database=None)
        @given(st.data())
        def mutate(choices: st.DataObject) -> None:
            content = msgpack.unpackb(body)
            for _ in range(choices.draw(st.integers(1, 3))):
                container, key = choices.draw(st.sampled_from(list(places(content))))
                container[key] = choices.draw(VALUES)
            attempt(with_checksum(msgpack.packb(content)))

        @settings(max_examples=300, suppress_health_check=list(HealthCheck), database=None)
        @given(st.integers(0, len(body) - 1), st.binary(max_size=4), st.integers(0, 4))
        def overwrite(place: int, new: bytes, removed: int) -> None:
            attempt(with_checksum(body[:place] + new + body[place + removed :]))

        @settings(max_examples=300, suppress_health_check=list(HealthCheck), database=None)
        @given(st.binary(max_size=200))
        def invent(anything: bytes) -> None:
            attempt(anything)
            attempt(with_checksum(anything))

        mutate()
        overwrite()
        invent()
