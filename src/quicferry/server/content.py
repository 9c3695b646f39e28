"""What the status of a response does not allow, and what is done about it: it is left out.

Web frameworks set it out of habit, and servers of HTTP/1.1 pass over it. In HTTP/3 a client takes
such a response for malformed (RFC 9114 4.1.2).
"""

from __future__ import annotations

from aioquic.h3.events import Headers

_NO_CONTENT = frozenset({204, 205, 304})


def may_have_content(method: str, status: int) -> bool:
    """Return whether a response to such a request may have content.

    It may not where the request is HEAD, or the status is 1xx, 204, 205 or 304 (RFC 9110 6.4.1,
    9.3.2, 15.3.6).
    """
    return method != "HEAD" and status >= 200 and status not in _NO_CONTENT


def allowed_fields(status: int, headers: Headers) -> tuple[Headers, list[str]]:
    """Return those header fields of a response that its status allows, and names of the others.

    With status 1xx or 204 there is no content-length (RFC 9110 8.6), with 205 it is 0
    (RFC 9110 15.3.6). With 304, as with HEAD, it tells of a response that is not sent. One of 0
    says nothing wrong, and is not named.
    """
    if status not in (204, 205) and status >= 200:
        return headers, []
    allowed = [
        (name, value)
        for name, value in headers
        if name.lower() != b"content-length" or (status == 205 and value == b"0")
    ]
    left_out = [field for field in headers if field not in allowed and field[1] != b"0"]
    return allowed, sorted({name.decode().lower() for name, _ in left_out})
