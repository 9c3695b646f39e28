"""Which header fields make an HTTP/3 message malformed, and which may be sent (RFC 9114 4.2, 4.3).

aioquic checks most of it. What is here are the rules that it lacks, and the one where it asks for
too much: a request may name its server in ``host`` alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from aioquic.h3.connection import (
    CONNECTION_SPECIFIC_HEADERS,
    MessageError,
    validate_push_promise_headers,
    validate_request_headers,
    validate_response_headers,
    validate_trailers,
)
from aioquic.h3.events import H3Event, Headers

MAX_FIELD_SECTION = 256 * 1024
"""Bytes of a field section that is taken in (RFC 9114 4.2.2); browsers allow as much."""

MAX_FIELD = 65535
"""Bytes of a name or value that QPACK's encoder takes."""

_FIELD_OVERHEAD = 32
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PATH = re.compile(rb"/[!-~]*")
_CHECKS = {
    "request": validate_request_headers,
    "response": validate_response_headers,
    "promise": validate_push_promise_headers,
    "trailers": validate_trailers,
}


@dataclass
class MessageMalformed(H3Event):
    """A request or response is malformed; its stream was given up (RFC 9114 4.1.2).

    Attributes:
        stream_id: The stream.
        reason: What is wrong with it.
    """

    stream_id: int
    reason: str


class SectionTooLargeError(MessageError):
    """A field section is larger than anyone here wants to keep (RFC 9114 4.2.2, 10.5.1)."""

    def __init__(self) -> None:
        super().__init__(f"a header is larger than {MAX_FIELD_SECTION} bytes")


def check_fields(headers: Headers) -> None:
    """Check what holds for every field section.

    Raises:
        MessageError: If it makes its message malformed.
        SectionTooLargeError: If it is too large; compressed, it may have been small.
    """
    if sum(len(name) + len(value) + _FIELD_OVERHEAD for name, value in headers) > MAX_FIELD_SECTION:
        raise SectionTooLargeError
    lengths = set()
    for name, value in headers:
        if not name.startswith(b":") and not _TOKEN.fullmatch(name):
            raise MessageError(f"{name!r} is not a field name")
        if name == b"content-length":
            if not value.isdigit():  # which int() is too generous about (RFC 9110 8.6)
                raise MessageError("content-length is not a number")
            lengths.add(value)
    if len(lengths) > 1:
        raise MessageError("there are different content-lengths")


def complete_request(headers: Headers) -> Headers:
    """Check the header of a request, and return it with ``:authority`` (RFC 9114 4.3.1).

    Raises:
        MessageError: If the request is malformed.
    """
    pseudo = {name: value for name, value in headers if name.startswith(b":")}
    method = pseudo.get(b":method", b"")
    if not _TOKEN.fullmatch(method):
        raise MessageError("the method is missing, or is not a token")
    if b":protocol" in pseudo and method != b"CONNECT":
        raise MessageError(":protocol is for CONNECT")
    if method == b"CONNECT" and b":protocol" not in pseudo:
        if b":scheme" in pseudo or b":path" in pseudo:
            raise MessageError("CONNECT has neither :scheme nor :path")
    else:
        path = pseudo.get(b":path", b"")
        if not pseudo.get(b":scheme"):
            raise MessageError(":scheme is missing")
        if not _PATH.fullmatch(path) and not (method == b"OPTIONS" and path == b"*"):
            raise MessageError(":path is missing, or is not the path of a URI")
    hosts = [value for name, value in headers if name == b"host"]
    authority = pseudo.get(b":authority", hosts[0] if hosts else b"")
    if any(host.lower() != authority.lower() for host in hosts):
        raise MessageError("host and :authority differ")
    if not authority or b"@" in authority:
        raise MessageError(":authority and host are missing, or name a user")
    return headers if b":authority" in pseudo else [(b":authority", authority), *headers]


def sendable_fields(kind: str, headers: Headers) -> Headers:
    """Return header fields of HTTP/1.1 as HTTP/3 wants them.

    Names become lower case. What is about one connection of HTTP/1.1 is left out (RFC 9114 4.2).

    Args:
        kind: Of which they are: ``request``, ``response``, ``promise`` or ``trailers``.
        headers: The fields, with the pseudo-header fields of the message.

    Raises:
        ValueError: If HTTP/3 does not allow them.
    """
    lowered = [(name.lower(), value) for name, value in headers]
    fields = [(name, value) for name, value in lowered if not is_left_out(kind, name, value)]
    for name, value in fields:
        if max(len(name), len(value)) > MAX_FIELD:
            what = ":path" if name == b":path" else f"field {name[:40].decode('latin-1')}"
            raise ValueError(f"{what} is longer than the {MAX_FIELD} bytes that HTTP/3 can carry")
    try:
        check_fields(fields)
        if kind == "request":
            complete_request(fields)
        _CHECKS[kind](fields)
    except MessageError as exc:
        raise ValueError(f"HTTP/3 does not allow this {kind}: {exc.reason_phrase}") from exc
    return fields


def is_left_out(kind: str, name: bytes, value: bytes) -> bool:
    """Return whether a field, with its name in lower case, is about a connection of HTTP/1.1."""
    if name == b"te" and value.lower() == b"trailers" and kind == "request":
        return False
    return name in CONNECTION_SPECIFIC_HEADERS
