"""HTTP/3 frames on streams of all kinds, QPACK, and header fields, for both ends."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import ErrorCode, FrameType, StreamType
from aioquic.h3.events import Headers
from http3_pair import GET, OK, POST, Side
from hypothesis import strategies as st
from simulated_pair import Pair, pair

from fuzzing.harness import FindingError, Steps, Target
from fuzzing.quic import damaged, data, is_defined, numbers, varints
from quicferry.transport import Http3Connection
from quicferry.transport.http3.messages import MAX_FIELD_SECTION, MAX_FIELDS

Sent = tuple[int, bytes, bool]
"""The number of a stream among those of the sender, what comes on it, and whether it ends then."""

PIECE = 1 << 15
"""Bytes that are sent in one step."""

# QPACK (RFC 9204 4.5)


def integer(first: int, prefix: int, value: int) -> bytes:
    """Return an integer behind the bits of `first` (RFC 7541 5.1)."""
    most = (1 << prefix) - 1
    if value < most:
        return bytes([first | value])
    value -= most
    rest = b""
    while value >= 128:
        rest += bytes([value & 127 | 128])
        value >>= 7
    return bytes([first | most]) + rest + bytes([value])


def literal(name: bytes, value: bytes) -> bytes:
    return integer(0x20, 3, len(name)) + name + integer(0, 7, len(value)) + value


def section(fields: Headers) -> bytes:
    """Return a field section in which nothing is compressed, so that it may hold anything."""
    return b"\0\0" + b"".join(literal(*field) for field in fields)


_integers = st.builds(integer, st.integers(0, 255), st.sampled_from([3, 4, 5, 6, 7]), numbers)
_lines = st.one_of(
    st.integers(0, 98).map(lambda index: integer(0xC0, 6, index)),
    numbers.map(lambda index: integer(0x80, 6, index)),
    st.builds(
        lambda i, v: integer(0x50, 4, i) + integer(0, 7, len(v)) + v, st.integers(0, 98), data
    ),
    st.builds(lambda i, v: integer(0x50, 4, i) + integer(0x80, 7, len(v)) + v, numbers, data),
    st.builds(literal, data, data),
    st.builds(lambda n, name: integer(0x28, 3, n) + name, numbers, data),
    _integers,
)
_times = st.sampled_from([1, 1, 1, 2, 60, 2000, 60_000])
_prefixes = (
    st.just(b"\0\0")
    | st.binary(min_size=2, max_size=2)
    | st.tuples(_integers, _integers).map(b"".join)
)
qpack_sections = st.builds(
    lambda prefix, begin, lines, times: prefix + begin + b"".join(lines) * times,
    _prefixes,
    st.sampled_from([b"", section(GET)[2:], section(OK)[2:]]),
    st.lists(_lines, max_size=4),
    _times,
).map(lambda content: content[: 1 << 19])
_instructions = st.lists(_integers | data, max_size=8).map(b"".join)
_streams_of_instructions = st.builds(
    lambda one, times: (one * times)[: 1 << 18], _instructions, _times
)

# Fields

_odd = st.sampled_from([b" ", b"\t", b"\0", b"\r\n", b"\n", b"\x1b[2J", b"\x7f", b"#", b":", b"@"])
_odd |= st.sampled_from([b"/", b"/..", b"//", b"?", b"*", b",", b"+3", b"0_3", b"-1", b"\xc3\xa9"])
_odd |= st.sampled_from([b"\xff", b"%", b"[::1", b""]) | st.just(70_000).map(
    lambda size: b"a" * size
)
_names = st.sampled_from(
    [b":method", b":scheme", b":authority", b":path", b":status", b":protocol", b"host", b"te"]
)
_names |= st.sampled_from(
    [b"content-length", b"cookie", b"connection", b"transfer-encoding", b"user-agent", b"X-A"]
)
_values = st.sampled_from(
    [b"GET", b"POST", b"CONNECT", b"OPTIONS", b"https", b"/", b"*", b"a.example", b"3", b"3, 3"]
)
_values |= st.sampled_from(
    [b"trailers", b"websocket", b"200", b"http://evil/admin", b"u:p@x/../y z"]
)
_names |= st.builds(lambda a, b: a + b, _names, _odd) | data
_values |= st.builds(lambda a, b, c: a + b + c, _odd, _values, _odd) | data


def _changed(begin: Headers, changes: list[tuple[int, bytes | None, bytes | None]]) -> Headers:
    fields = list(begin)
    for place, name, value in changes:
        at = place % (len(fields) + 1)
        if name is None and value is None:
            del fields[at : at + 1]
        elif at == len(fields) or (name and value):
            fields.insert(at, (name or b"x", value or b""))
        else:
            fields[at] = (name or fields[at][0], value or fields[at][1])
    return fields


_changes = st.lists(
    st.tuples(st.integers(0, 20), st.none() | _names, st.none() | _values), max_size=4
)
fields = st.builds(_changed, st.sampled_from([GET, POST, OK, []]), _changes) | st.builds(
    lambda field, times: [*GET, *[field] * times],
    st.tuples(_names, _values),
    st.sampled_from([199, 300, 5000]),
).filter(lambda it: len(section(it)) < 1 << 18)

# Frames


def framed(kind: int, content: bytes, said: int | None = None) -> bytes:
    size = len(content) if said is None else said
    return encode_uint_var(kind) + encode_uint_var(size) + content


_sections = st.one_of(
    qpack_sections,
    fields.map(section),
    st.sampled_from([section(GET), section(POST), section(OK)]),
)
_settings = st.lists(st.tuples(varints, varints).map(b"".join), max_size=5).map(b"".join)
_settings |= st.builds(lambda one, times: one * times, _settings, st.sampled_from([1, 1000]))
_kinds = st.sampled_from([*map(int, FrameType), 0x21, 0x2, 0x6, 0x8, 0x9, 0x41]) | numbers
frames = st.one_of(
    st.builds(framed, st.just(FrameType.HEADERS), _sections),
    st.builds(framed, st.just(FrameType.HEADERS), _sections, numbers),
    st.builds(framed, st.just(FrameType.DATA), data),
    st.builds(framed, st.just(FrameType.SETTINGS), _settings),
    st.builds(framed, st.just(FrameType.PUSH_PROMISE), st.tuples(varints, _sections).map(b"".join)),
    st.builds(framed, _kinds, varints),
    st.builds(framed, _kinds, data, numbers),
    st.builds(
        lambda kind, content, times: framed(kind, content) * times,
        _kinds,
        data,
        st.sampled_from([2, 500]),
    ),
    # One that goes on and on
    st.builds(
        lambda kind, size: framed(kind, bytes(size), 1 << 40), _kinds, st.sampled_from([1, 100_000])
    ),
    varints,
)
_kinds_of_streams = st.sampled_from([*map(int, StreamType), 0x21, 0x3E]) | numbers
_contents = st.lists(frames, max_size=4).map(b"".join)
_sent = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 3), _contents | damaged(_contents), st.booleans()),
        st.tuples(
            st.integers(4, 8),
            st.builds(
                lambda kind, rest: encode_uint_var(kind) + rest, _kinds_of_streams, _contents
            ),
            st.booleans(),
        ),
        st.tuples(st.integers(4, 8), _contents, st.booleans()),
    ),
    min_size=1,
    max_size=6,
)
_qpack = st.lists(
    st.one_of(
        st.tuples(
            st.just(0), qpack_sections.map(lambda it: framed(FrameType.HEADERS, it)), st.booleans()
        ),
        st.tuples(
            st.integers(0, 3), st.just(framed(FrameType.HEADERS, section(GET))), st.booleans()
        ),
        st.tuples(
            st.sampled_from([4, 5]),
            st.builds(
                lambda kind, rest: encode_uint_var(kind) + rest,
                st.sampled_from([StreamType.QPACK_ENCODER, StreamType.QPACK_DECODER]),
                _streams_of_instructions,
            ),
            st.just(False),
        ),
        st.tuples(st.sampled_from([4, 5]), _streams_of_instructions, st.just(False)),
    ),
    min_size=1,
    max_size=5,
)
_fields = st.lists(
    st.tuples(
        st.integers(0, 3),
        fields.map(lambda it: framed(FrameType.HEADERS, section(it))),
        st.booleans(),
    ),
    min_size=1,
    max_size=3,
)


def _pieces(value: list[Sent]) -> Iterator[Sent]:
    for stream, content, ends in value:
        pieces = [content[at : at + PIECE] for at in range(0, len(content) or 1, PIECE)]
        for piece in pieces[:-1]:
            yield stream, piece, False
        yield stream, pieces[-1], ends


def _play(is_client: bool) -> Callable[[Any], Steps]:
    def play(value: list[Sent]) -> Steps:
        with pair() as it:
            yield from play_http3(it, value, is_client=is_client)

    return play


def play_http3(it: Pair, value: list[Sent], *, is_client: bool) -> Steps:
    ours = it.client if is_client else it.server
    theirs = it.server if is_client else it.client
    side = Side(ours, Http3Connection(ours.connection))
    ours.application, theirs.application = side, None
    if is_client:
        for stream_id in (0, 4, 8, 12):
            side.http.send_headers(stream_id, GET, end_stream=True)
    ours.flush()
    it.network.run_for(0.1)
    yield
    ended = set()
    for stream, piece, ends in _pieces(value):
        stream_id = 4 * stream if stream < 4 else 4 * (stream - 4) + (3 if is_client else 2)
        if stream_id in ended or theirs.migrating.close_reason is not None:
            continue
        # What the other end has asked not to be sent.
        with suppress(ValueError, AssertionError, RuntimeError):
            theirs.connection.send_stream_data(stream_id, piece, ends)
            if ends:
                ended.add(stream_id)
        theirs.flush()
        it.network.run_for(0.1)
        check_side(side, is_client=is_client)
        yield


_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9a-z-]+")
_METHOD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"(?![ \t])[^\x00-\x08\x0a-\x1f\x7f]*(?<![ \t])")
_PATH = re.compile(rb"\*|/[!\"$-~]*")
_AUTHORITY = re.compile(rb"[!$%&'()*+,;=:.\[\]_~0-9A-Za-z-]+")


def check_side(side: Side, *, is_client: bool) -> None:
    """Check what has come of it.

    Raises:
        FindingError: If it is an internal error, or if something malformed got through.
    """
    is_defined(side.endpoint.migrating)
    event = side.endpoint.migrating.close_reason
    if event is not None and event.error_code == ErrorCode.H3_INTERNAL_ERROR:
        raise FindingError(f"an internal error: {event.reason_phrase}")
    for headers in side.headers.values():
        for name, value in headers:
            if not _TOKEN.fullmatch(name.removeprefix(b":")) or not _VALUE.fullmatch(value):
                raise FindingError(f"the field {name[:99]!r}: {value[:99]!r} got through")
        sent = [field for field in headers if field[0] != b":authority"]  # may come from host
        size = sum(len(name) + len(value) + 32 for name, value in sent)
        if size > MAX_FIELD_SECTION or len(sent) > MAX_FIELDS:
            raise FindingError(f"{len(sent)} fields of {size} bytes got through")
        lengths = [value for name, value in headers if name == b"content-length"]
        if len(set(lengths)) > 1 or not all(length.isdigit() for length in lengths):
            raise FindingError(f"content-length {lengths} got through")
        if not is_client:
            _check_request(dict(headers))


def _check_request(found: dict[bytes, bytes]) -> None:
    method = found[b":method"]
    path = found.get(b":path", b"*")
    if not _METHOD.fullmatch(method) or not _PATH.fullmatch(path):
        raise FindingError(f"{method!r} {path!r} got through")
    if not _AUTHORITY.fullmatch(found[b":authority"]):
        raise FindingError(f"the authority {found[b':authority']!r} got through")


TARGETS = [
    Target("http3-server", _sent, _play(is_client=False)),
    Target("http3-client", _sent, _play(is_client=True)),
    Target("qpack-server", _qpack, _play(is_client=False)),
    Target("qpack-client", _qpack, _play(is_client=True)),
    Target("fields-server", _fields, _play(is_client=False)),
    Target("fields-client", _fields, _play(is_client=True)),
]
