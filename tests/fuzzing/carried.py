"""What one host sends the other: messages, snapshots, and the state of HTTP/3."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import msgpack
from aioquic.h3.connection import FrameType
from http3_pair import GET, OK, POST, Both, both
from hypothesis import strategies as st
from quicferry_lab.simulation import server_configuration
from relocation.test_messages import ALL
from simulated_pair import AWAY, genuine

from fuzzing.harness import Steps, Target
from fuzzing.http3 import framed, section
from fuzzing.quic import damaged, is_defined, payloads
from quicferry.protocol import MigrationProtocol, ServerMigration
from quicferry.relocation.errors import MessageError
from quicferry.relocation.link.messages import KINDS, decode, encode, prepare_messages
from quicferry.transport import (
    Http3Connection,
    SnapshotError,
    activate,
    commit,
    freeze,
    prepare_snapshots,
    thaw,
)
from quicferry.transport.http3.state import HTTP3
from quicferry.transport.snapshot.format import CONNECTION, Form

# Values inside of values

_edges = st.sampled_from([-1, 0, 1, 2, 4, 255, 65536, 1 << 31, 1 << 60, (1 << 62) - 1, 1 << 63])
_wrong: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    _edges,
    st.integers(-1000, 1000),
    st.floats(),
    st.binary(max_size=40),
    st.text(max_size=20),
    st.sampled_from([[], {}, [[]], {b"": 0}]),
    st.sampled_from(["127.0.0.1", "0.0.0.0", "../x", "/etc/passwd", "-x", "::1", "\x1b[2J\n"]),
)


def _places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    if isinstance(value, list | dict):
        for key in range(len(value)) if isinstance(value, list) else value:
            yield from _places(value[key], (*place, key))


def _at(value: Any, place: tuple[Any, ...]) -> Any:
    for key in place:
        value = value[key]
    return value


Change = tuple[int, str, Any]
"""Where, how, and with what."""


def changed(value: Any, changes: list[Change]) -> Any:
    """Return a value with some of those inside of it changed."""
    value = msgpack.unpackb(msgpack.packb(value), strict_map_key=False)
    for number, how, new in changes:
        places = list(_places(value))
        *outer, key = places[number % len(places)] or (None,)
        if key is None:
            continue
        holder = _at(value, tuple(outer))
        old = holder[key]
        match how:
            case "near" if type(old) is int and type(new) is int:
                holder[key] = max(-(1 << 63), min(old + new, (1 << 64) - 1))
            case "near" if type(old) in (int, float):
                holder[key] = old + 1
            case "near" if type(old) is bytes:
                holder[key] = bytes(reversed(old))
            case "same kind" if type(new) is type(old):
                holder[key] = new
            case "again" if isinstance(holder, list):
                holder.insert(key, old)
            case "many" if isinstance(old, list):
                holder[key] = old * 500
            case "less" if isinstance(holder, list):
                del holder[key]
            case "other":
                other = _at(value, places[(number // 7) % len(places)])
                holder[key] = msgpack.unpackb(msgpack.packb(other), strict_map_key=False)
            case "wrong":
                holder[key] = new
    return value


changes = st.lists(
    st.tuples(
        st.integers(0, 5000),
        st.sampled_from(["near", "same kind", "near", "again", "many", "less", "other", "wrong"]),
        _wrong,
    ),
    min_size=1,
    max_size=4,
)

# MessagePack that is small, and becomes large

_units = st.sampled_from(
    [b"\x90", b"\x80", b"\xc0", b"\xa0", b"\xc4\x00", b"\x00", b"\x81\x00\x90"]
)


def _bomb(unit: bytes, times: int, nested: int) -> bytes:
    content = (unit * times)[: 6 << 20]
    return b"\x91" * nested + b"\xdd" + times.to_bytes(4, "big") + content


_bombs = st.builds(
    _bomb,
    _units,
    st.sampled_from([10, 1000, 100_000, 1_000_000, 6 << 20]),
    st.sampled_from([0, 1, 5, 600]),
)
_kinds = st.sampled_from(sorted(KINDS)).map(lambda kind: bytes([kind]))

# Messages

_messages = st.sampled_from([encode(message) for message in ALL])


def _changed_message(message: bytes, changes: list[Change]) -> bytes:
    body: bytes = msgpack.packb(changed(msgpack.unpackb(message[1:]), changes))
    return message[:1] + body


messages = st.one_of(
    st.builds(_changed_message, _messages, changes),
    damaged(_messages),
    st.builds(lambda kind, bomb: kind + bomb, _kinds, _bombs),
    # A bomb in a field of an otherwise good message
    st.builds(
        lambda m, bomb, fields: m[:1] + bytes([0x90 | fields]) + m[2:19] + bomb,
        _messages,
        _bombs,
        st.integers(2, 15),
    ),
)


def _play_message(value: bytes) -> Steps:
    prepare_messages()
    yield
    with suppress(MessageError):
        decode(value)


# Snapshots


def _snapshot(form: Form, content: Any) -> bytes:
    """Put an envelope around values, as `encode` does around those of a record."""
    body: bytes = msgpack.packb(content)
    return form.magic + form.version.to_bytes(2, "big") + zlib.crc32(body).to_bytes(4, "big") + body


def _changed_snapshot(form: Form, snapshot: bytes, changes: list[Change]) -> bytes:
    return _snapshot(form, changed(msgpack.unpackb(snapshot[HEADER:]), changes))


HEADER = 10
"""Bytes of the envelope."""


@contextmanager
def served_connection(state: str) -> Iterator[Both]:
    """Provide a connection in some state that it may be carried in."""
    with both(client=False) as this:
        this.send(0, GET)
        if state != "fresh":
            this.ours.http.send_headers(0, OK)
            this.ours.http.send_data(0, bytes(100_000), end_stream=False)
            this.ours.endpoint.flush()
            this.send(4, POST, b"first", ends=False)
            half = framed(FrameType.HEADERS, section(GET))[:9]
            this.theirs.endpoint.connection.send_stream_data(8, half)
            this.theirs.endpoint.flush()
            this.it.network.run_for(0.02)
        if state == "announced":
            this.it.imminent(MigrationProtocol.EXPLICIT, AWAY)
            this.it.network.run_for(0.1)
        this.ours.endpoint.application = this.theirs.endpoint.application = None
        yield this


Carried = tuple[str, list[Change] | None, list[Change] | None, bytes]
_states = st.sampled_from(["fresh", "busy", "announced"])
_carried = st.one_of(
    st.tuples(_states, changes, st.none(), payloads),
    st.tuples(_states, st.none(), changes, payloads),
    st.tuples(_states, st.none(), st.none(), payloads),
)


def _play_carried(value: Carried) -> Steps:
    """A copy of a connection in which something was changed: it is refused, or it lives."""
    state, in_connection, in_http, payload = value
    with served_connection(state) as this:
        now = this.it.network.now
        http_state = this.ours.http.export()  # type: ignore[attr-defined]  # it is ours
        snapshot = freeze(this.it.server.migrating, now=now)
        if in_connection is not None:
            snapshot = _changed_snapshot(CONNECTION, snapshot, in_connection)
        if in_http is not None:
            http_state = _changed_snapshot(HTTP3, http_state, in_http)
        more = framed(FrameType.HEADERS, section(GET))
        stream = b"\x0a\x0c" + bytes([0x40, len(more)]) + more  # on stream 12
        packets = [genuine(this.it.client, each) for each in (stream, b"\x01", payload)]
        source = this.it.client.external
        prepare_snapshots()
        configuration = server_configuration(ServerMigration())
        yield
        try:
            copy = thaw(snapshot, configuration=configuration, now=now)
            http = Http3Connection(copy, state=http_state)
        except SnapshotError:
            return
        yield
        activate(copy, now=now)
        commit(copy)
        yield
        for packet in (None, *packets, None):
            if packet is not None:
                copy.receive_datagram(packet, source, now)
            while (event := copy.next_event()) is not None:
                http.handle_event(event)
            while copy.next_migration_event() is not None:
                pass
            copy.datagrams_to_send(now)
            yield
            timer = copy.get_timer()
            if timer is not None:
                now = max(now, timer)
                copy.handle_timer(now)
                copy.datagrams_to_send(now)
            is_defined(copy)
            yield


_snapshots = st.one_of(
    st.builds(
        _snapshot,
        st.sampled_from([CONNECTION, HTTP3]),
        st.builds(lambda bomb: msgpack.ExtType(1, bomb), _bombs),
    ),
    st.builds(
        lambda form, bomb: (
            form.magic
            + form.version.to_bytes(2, "big")
            + zlib.crc32(bomb).to_bytes(4, "big")
            + bomb
        ),
        st.sampled_from([CONNECTION, HTTP3]),
        _bombs | st.binary(max_size=200),
    ),
    st.binary(max_size=100),
)


def _play_snapshot(value: bytes) -> Steps:
    prepare_snapshots()
    configuration = server_configuration(ServerMigration())
    with both(client=False) as this:
        connection = this.it.server.migrating
        yield
        with suppress(SnapshotError):
            thaw(value, configuration=configuration, now=0.0)
        yield
        with suppress(SnapshotError):
            Http3Connection(connection, state=value)


TARGETS = [
    Target("messages", messages, _play_message),
    Target("snapshots", _snapshots, _play_snapshot),
    Target("inside-snapshots", _carried, _play_carried),
]
