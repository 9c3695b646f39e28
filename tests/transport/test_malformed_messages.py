"""A malformed message costs its stream; the connection and what is beside it live on."""

from __future__ import annotations

import pytest
from aioquic.h3.connection import ErrorCode, FrameType, encode_frame
from aioquic.h3.events import Headers
from http3_pair import AUTHORITY, GET, LENGTH_4, OK, POST, both
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quicferry.transport import Http3Connection, sendable_fields

MALFORMED_REQUESTS: dict[str, list[Headers | bytes]] = {
    "upper case": [[*GET, (b"X-Upper", b"1")]],
    "space in a name": [[*GET, (b"x y", b"1")]],
    "no token": [[*GET, (b"x(y)", b"1")]],
    "colon in a name": [[*GET, (b"x:y", b"1")]],
    "line end in a value": [[*GET, (b"x", b"1\r\ny: 2")]],
    "nul in a value": [[*GET, (b"x", b"\0")]],
    "space around a value": [[*GET, (b"x", b" 1")]],
    "connection": [[*GET, (b"connection", b"keep-alive")]],
    "keep-alive": [[*GET, (b"keep-alive", b"5")]],
    "proxy-connection": [[*GET, (b"proxy-connection", b"keep-alive")]],
    "transfer-encoding": [[*GET, (b"transfer-encoding", b"chunked")]],
    "upgrade": [[*GET, (b"upgrade", b"h2c")]],
    "te": [[*GET, (b"te", b"gzip")]],
    "no method": [GET[1:]],
    "two methods": [[GET[0], *GET]],
    "method": [[(b":method", b"\xff"), *GET[1:]]],
    "no scheme": [[GET[0], *GET[2:]]],
    "no path": [GET[:3]],
    "empty path": [[*GET[:3], (b":path", b"")]],
    "path that is none": [[*GET[:3], (b":path", b"index.html")]],
    "path that is no URI": [[*GET[:3], (b":path", "/é".encode())]],
    "star": [[*GET[:3], (b":path", b"*")]],
    "neither authority nor host": [[*GET[:2], GET[3]]],
    "empty authority": [[*GET[:2], (b":authority", b""), GET[3]]],
    "path of a proxy": [[*GET[:3], (b":path", b"http://evil/admin")]],
    "path with a fragment": [[*GET[:3], (b":path", b"/a#b")]],
    "path with a space": [[*GET[:3], (b":path", b"/a b")]],
    "path with an escape sequence": [[*GET[:3], (b":path", b"/\x1b[31m")]],
    "query with a line end": [[*GET[:3], (b":path", b"/?a\nb")]],
    "path with DEL": [[*GET[:3], (b":path", b"/\x7f")]],
    "method with a line in it": [[(b":method", b"GET / HTTP/1.1\r\nx: y"), *GET[1:]]],
    "method with a space": [[(b":method", b"GET /"), *GET[1:]]],
    "scheme that is none": [[GET[0], (b":scheme", b"ht tp"), *GET[2:]]],
    "scheme that begins with a digit": [[GET[0], (b":scheme", b"3https"), *GET[2:]]],
    "control character in a value": [[*GET, (b"x", b"a\x1b[31mb")]],
    "DEL in a value": [[*GET, (b"x", b"a\x7f")]],
    "control character in a name": [[*GET, (b"x\x1b", b"1")]],
    "user": [[*GET[:2], (b":authority", b"me@server.example"), GET[3]]],
    "user, password and path": [[*GET[:2], (b":authority", b"u:p@x/../y z"), GET[3]]],
    "path in the authority": [[*GET[:2], (b":authority", b"x/y"), GET[3]]],
    "space in the authority": [[*GET[:2], (b":authority", b"x y"), GET[3]]],
    "port that is none": [[*GET[:2], (b":authority", b"x:80a"), GET[3]]],
    "half an IPv6 address": [[*GET[:2], (b":authority", b"[::1"), GET[3]]],
    "bad escape in the authority": [[*GET[:2], (b":authority", b"x%zz"), GET[3]]],
    "user in the host": [[*GET[:2], GET[3], (b"host", b"u@x")]],
    "the same host twice": [[*GET[:2], GET[3], (b"host", b"a"), (b"host", b"a")]],
    "protocol that is none": [[(b":method", b"CONNECT"), (b":protocol", b"web socket"), *GET[1:]]],
    "other host": [[*GET, (b"host", b"other.example")]],
    "two hosts": [[*GET[:2], GET[3], (b"host", b"a"), (b"host", b"b")]],
    "unknown pseudo-header": [[*GET, (b":color", b"red")]],
    "status": [[*GET, (b":status", b"200")]],
    "late pseudo-header": [[*GET[:3], (b"x", b"1"), GET[3]]],
    "protocol": [[*GET, (b":protocol", b"websocket")]],
    "CONNECT with a path": [[(b":method", b"CONNECT"), *GET[1:]]],
    "too short": [[*POST, LENGTH_4], b"abc"],
    "too short by far": [[*POST, LENGTH_4]],
    "too long": [[*POST, LENGTH_4], b"abcd", b"e"],
    "length of nothing": [[*POST, (b"content-length", b"")], b"abcd"],
    "signed length": [[*POST, (b"content-length", b"+4")], b"abcd"],
    "length with digits grouped": [[*POST, (b"content-length", b"1_0")], b"0123456789"],
    "zero grouped": [[*POST, (b"content-length", b"0_3")], b"abc"],
    "length in a list": [[*POST, (b"content-length", b"4, 4")], b"abcd"],
    "negative length": [[*POST, (b"content-length", b"-4")], b"abcd"],
    "endless length": [[*POST, (b"content-length", b"9" * 5000)], b"abcd"],
    "two lengths": [[*POST, LENGTH_4, (b"content-length", b"5")], b"abcd"],
    "pseudo-header in trailers": [POST, b"abcd", [(b":path", b"/")]],
    "upper case in trailers": [POST, b"abcd", [(b"X-Upper", b"1")]],
}

RESPONSES: dict[str, list[Headers | bytes]] = {
    "no status": [[(b"x", b"1")]],
    "two status codes": [[*OK, *OK]],
    "status of letters": [[(b":status", b"abc")]],
    "short status": [[(b":status", b"20")]],
    "status below 100": [[(b":status", b"099")]],
    "escape sequence": [[*OK, (b"x", b"\x1b[31m")]],
    "control character in a name": [[*OK, (b"x\x1b", b"1")]],
    "late pseudo-header": [[(b"x", b"1"), *OK]],
    "signed length": [[*OK, (b"content-length", b"+4")], b"abcd"],
    "length with digits grouped": [[*OK, (b"content-length", b"0_4")], b"abcd"],
    "two lengths": [[*OK, LENGTH_4, (b"content-length", b"5")], b"abcd"],
    "switching protocols": [[(b":status", b"101")]],
    "path": [[*OK, (b":path", b"/")]],
    "upper case": [[*OK, (b"X-Upper", b"1")]],
    "connection": [[*OK, (b"connection", b"close")]],
    "te": [[*OK, (b"te", b"trailers")]],
    "line end": [[*OK, (b"x", b"1\n")]],
    "too short": [[*OK, LENGTH_4], b"abc"],
    "too long": [[*OK, LENGTH_4], b"abcde"],
    "trailers": [OK, b"abcd", [(b":status", b"200")]],
    "content without a right to it": [[(b":status", b"204")], b"abcd"],
    "content although nothing is modified": [[(b":status", b"304"), LENGTH_4], b"abcd"],
}


REQUESTS = [(name, True) for name in MALFORMED_REQUESTS] + [
    (name, False) for name in MALFORMED_REQUESTS if not name.startswith("too short")
]


@pytest.mark.parametrize(("name", "ends"), REQUESTS)
def test_malformed_request(name: str, ends: bool) -> None:
    parts = MALFORMED_REQUESTS[name]
    with both(client=False) as this:
        this.send(0, POST, b"first ", ends=False)
        this.send(4, *parts, ends=ends)
        assert this.theirs.codes[4] == {ErrorCode.H3_MESSAGE_ERROR}
        assert set(this.ours.malformed) == {4}
        assert 4 not in this.ours.ended
        if not ends:  # what follows is not looked at, and harms nobody
            this.it.client.connection.reset_stream(4, 0)
        this.send(0, b"second")
        assert this.ours.bodies[0] == b"first second"
        this.send(8, GET)
        assert this.ours.headers[8] == GET
        this.ours.http.send_headers(8, OK, end_stream=True)
        this.settle()
        assert this.theirs.headers[8] == OK
        assert this.lives


@pytest.mark.parametrize("name", RESPONSES)
def test_malformed_response(name: str) -> None:
    with both(client=True) as this:
        for stream_id in (0, 4):
            this.ours.http.send_headers(stream_id, POST)
        this.settle()
        this.send(0, OK, b"first ", ends=False)
        this.send(4, *RESPONSES[name], ends=name != "switching protocols")
        assert this.theirs.codes[4] == {ErrorCode.H3_MESSAGE_ERROR}
        assert set(this.ours.malformed) == {4}
        this.send(0, b"second")
        assert this.ours.bodies[0] == b"first second"
        assert this.lives


def test_interim_response_that_ends_the_stream() -> None:
    with both(client=True) as this:
        this.ours.http.send_headers(0, GET, end_stream=True)
        this.settle()
        this.send(0, [(b":status", b"103")], ends=False)
        this.theirs.endpoint.connection.send_stream_data(0, b"", end_stream=True)
        this.settle()
        assert set(this.ours.malformed) == {0}
        assert this.lives


@pytest.mark.parametrize(
    "response", [[(b":status", b"204"), LENGTH_4], [(b":status", b"304"), LENGTH_4]]
)
def test_length_without_content_where_none_is_allowed(response: Headers) -> None:
    with both(client=True) as this:
        this.ours.http.send_headers(0, GET, end_stream=True)
        this.settle()
        this.send(0, response)
        assert this.ours.ended == {0}
        assert this.ours.malformed == {}


@pytest.mark.parametrize(
    ("request_fields", "seen"),
    [
        ([*GET[:2], GET[3], (b"host", b"h")], [(b":authority", b"h"), *GET[:2], GET[3]]),
        ([*GET, (b"host", b"server.example")], GET),
        ([*GET, (b"host", b"Server.Example")], GET),
        ([*GET, (b"te", b"trailers")], GET),
        ([(b":method", b"OPTIONS"), *GET[1:3], (b":path", b"*")], None),
        ([(b":method", b"CONNECT"), AUTHORITY], None),
        ([(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:]], None),
        ([*GET, LENGTH_4, LENGTH_4], GET),
        ([*GET[:2], (b":authority", b"[2001:db8::1]:443"), GET[3]], None),
        ([*GET[:2], (b":authority", b"a_b-c.example:8443"), GET[3]], None),
        ([*GET[:3], (b":path", b'/a|b^{c}?"%zz\\`<d>')], None),
        ([*GET, (b"x", "a\tb é".encode())], GET),
    ],
    ids=[
        "host-only",
        "same-host",
        "case",
        "te",
        "star",
        "CONNECT",
        "websocket",
        "twice",
        "IPv6",
        "port",
        "browsers",
        "Latin",
    ],
)
def test_unusual_request_that_is_not_malformed(
    request_fields: Headers, seen: Headers | None
) -> None:
    with both(client=False) as this:
        this.send(0, request_fields, b"abcd")
        assert this.ours.malformed == {}
        assert this.ours.ended == {0}
        received = this.ours.headers[0]
        assert received[: len(seen or request_fields)] == (seen or request_fields)


def test_trailers_may_be_empty() -> None:
    with both(client=False) as this:
        this.send(0, POST, b"abcd", [])
        assert (this.ours.bodies[0], this.ours.ended) == (b"abcd", {0})
        this.send(4, [])
        assert set(this.ours.malformed) == {4}
        assert this.lives


def test_errors_of_frames_still_close_the_connection() -> None:
    with both(client=False) as this:
        this.theirs.endpoint.connection.send_stream_data(0, encode_frame(FrameType.DATA, b"early"))
        this.settle()
        reason = this.theirs.endpoint.migrating.close_reason
        assert reason is not None
        assert reason.error_code == ErrorCode.H3_FRAME_UNEXPECTED


def test_a_response_that_is_complete_is_not_taken_back() -> None:
    with both(client=False) as this:
        this.send(0, [*POST, LENGTH_4], ends=False)
        this.ours.http.send_headers(0, OK, end_stream=True)
        this.settle()
        this.send(0, b"abcde")
        assert set(this.ours.malformed) == {0}
        assert this.theirs.headers[0] == OK
        assert 0 not in this.theirs.codes
        assert this.lives


def test_nothing_is_kept_of_malformed_messages() -> None:
    with both(client=False) as this:
        assert isinstance(this.ours.http, Http3Connection)
        before = len(this.ours.http.export())
        for stream_id in range(0, 80, 4):
            this.send(stream_id, [*POST, LENGTH_4], b"abc")
        assert len(this.ours.malformed) == 20
        assert len(this.ours.http.export()) == before


def test_what_may_be_sent() -> None:
    fields = [(b"X-Upper", b"1"), (b"Connection", b"x"), (b"TE", b"trailers"), (b"te", b"gzip")]
    expected = [(b"x-upper", b"1"), (b"te", b"trailers")]
    assert sendable_fields("request", [*GET, *fields]) == [*GET, *expected]
    assert sendable_fields("response", [*OK, *fields]) == [*OK, expected[0]]
    assert sendable_fields("trailers", fields) == [expected[0]]
    with pytest.raises(ValueError, match=r"does not allow this request: .*path"):
        sendable_fields("request", [*GET[:3], (b":path", b"/a b")])
    with pytest.raises(ValueError, match="does not allow"):
        sendable_fields("trailers", [(b":path", b"/")])


NAMES = st.sampled_from(
    b":method :scheme :authority :path :protocol :status :x : host content-length te".split()
    + b"connection cookie x X x(y) \xff".split()
)
VALUES = st.sampled_from(
    [b"", b" ", *b"GET CONNECT https server.example / * 4 -1 200 103 trailers a\0 \xe9".split()]
)
FIELDS = st.lists(st.tuples(NAMES, VALUES), max_size=7)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(FIELDS | st.just(GET), st.sampled_from([b"", b"abcd"])), max_size=12))
def test_no_header_ends_a_connection(requests: list[tuple[Headers, bytes]]) -> None:
    with both(client=False) as this:
        for number, (fields, body) in enumerate(requests):
            stream_id = 4 * number
            this.theirs.http.send_headers(stream_id, fields)
            this.theirs.http.send_data(stream_id, body, end_stream=True)
        this.settle()
        stream_ids = set(range(0, 4 * len(requests), 4))
        assert this.ours.ended.isdisjoint(this.ours.malformed)
        assert this.ours.ended | set(this.ours.malformed) == stream_ids
        assert this.lives
        this.send(4 * len(requests), GET)
        assert 4 * len(requests) in this.ours.ended
