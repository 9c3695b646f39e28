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

from .qpack import count_fields

MAX_FIELD_SECTION = 64 * 1024
"""Bytes of a field section that is taken in, by default (RFC 9114 4.2.2)."""

MAX_FIELDS = 200
"""Fields of a section that is taken in, by default."""

MAX_FIELD = 65535
"""Bytes of a name or value that QPACK's encoder takes."""

_FIELD_OVERHEAD = 32
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[\t -~\x80-\xff]*")  # RFC 9110 5.5
_SCHEME = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*")  # RFC 3986 3.1
_PATH = re.compile(rb"/[!\"$-~]*")
"""What no URI has in a path or query and browsers leave as it is may be there; a fragment not."""
_AUTHORITY = re.compile(  # RFC 3986 3.2, without a user (RFC 9114 4.3.1)
    rb"""(?: \[ [0-9A-Fa-f:.]+ \] | \[ [vV] [0-9A-Fa-f]+ \. [A-Za-z0-9._~!$&'()*+,;=:-]+ \]
        | (?: [A-Za-z0-9._~!$&'()*+,;=-] | %[0-9A-Fa-f]{2} )+ ) (?: : [0-9]{0,5} )?""",
    re.VERBOSE,
)
_STATUS = re.compile(rb"[1-9][0-9]{2}")
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


@dataclass(frozen=True)
class SectionLimits:
    """How large a field section may be that is taken in.

    Attributes:
        size: Bytes, where 32 are added for each field (RFC 9114 4.2.2). What is compressed may not
            take more either: what is expanded takes no less, but for encoders that waste space.
        fields: How many fields.
    """

    size: int = MAX_FIELD_SECTION
    fields: int = MAX_FIELDS

    def check_frame(self, size: int) -> None:
        """Check the length of a frame that holds a section, as soon as it is known.

        Raises:
            SectionTooLargeError: If it is too large.
        """
        if size > self.size:
            raise SectionTooLargeError(f"a header is larger than {self.size} bytes")

    def check_encoded(self, section: bytes) -> None:
        """Check what is still compressed: a byte can stand for a field of a hundred.

        Raises:
            SectionTooLargeError: If there are too many fields.
        """
        if count_fields(section, self.fields + 1) > self.fields:
            raise SectionTooLargeError(f"a header has more than {self.fields} fields")

    def check(self, headers: Headers) -> None:
        """Check a section.

        Raises:
            SectionTooLargeError: If it is too large; compressed, it may have been small.
        """
        self.check_frame(sum(len(name) + len(value) + _FIELD_OVERHEAD for name, value in headers))


def check_fields(headers: Headers) -> None:
    """Check what holds for every field section.

    Raises:
        MessageError: If it makes its message malformed.
    """
    lengths = set()
    for name, value in headers:
        if not name.startswith(b":") and not _TOKEN.fullmatch(name):
            raise MessageError(f"{name!r} is not a field name")
        if not _VALUE.fullmatch(value):
            raise MessageError(f"the value of {name!r} has control characters")
        if name == b":status" and not _STATUS.fullmatch(value):
            raise MessageError(":status is not a number of three digits")
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
    if not _TOKEN.fullmatch(pseudo.get(b":protocol", b"none")):
        raise MessageError(":protocol is not a token")
    if method == b"CONNECT" and b":protocol" not in pseudo:
        if b":scheme" in pseudo or b":path" in pseudo:
            raise MessageError("CONNECT has neither :scheme nor :path")
    else:
        path = pseudo.get(b":path", b"")
        if not _SCHEME.fullmatch(pseudo.get(b":scheme", b"")):
            raise MessageError(":scheme is missing, or is not the scheme of a URI")
        if not _PATH.fullmatch(path) and not (method == b"OPTIONS" and path == b"*"):
            raise MessageError(":path is missing, or is not the path of a URI")
    hosts = [value for name, value in headers if name == b"host"]
    authority = pseudo.get(b":authority", hosts[0] if hosts else b"")
    if len(hosts) > 1 or any(host.lower() != authority.lower() for host in hosts):
        raise MessageError("host and :authority differ, or there is more than one host")
    if not _AUTHORITY.fullmatch(authority):
        raise MessageError(":authority and host are missing, or name no server")
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
