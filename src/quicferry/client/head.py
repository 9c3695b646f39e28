"""The head of a request, as HTTP/3 wants it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from aioquic.h3.events import Headers

from quicferry.transport import sendable_fields

HeaderFields = Mapping[str, str] | Iterable[tuple[str, str]]


def request_head(
    method: str, path: str, authority: str, headers: HeaderFields
) -> tuple[Headers, list[str]]:
    """Return the header fields of a request, and the names of those that are left out.

    What is about one connection of HTTP/1.1 is left out, for example ``connection`` and
    ``transfer-encoding`` (RFC 9114 4.2).

    Args:
        method: The method.
        path: The path, with the query.
        authority: The server's name, with the port; ``host`` replaces it.
        headers: Other header fields.

    Raises:
        ValueError: If HTTP/3 does not allow the request; the text says why.
    """
    given = headers.items() if isinstance(headers, Mapping) else headers
    fields = [(name.lower().encode(), _encoded(name, value)) for name, value in given]
    named = dict(fields).get(b"host", authority.encode())
    pseudo = [
        (b":method", method.encode()),
        (b":scheme", b"https"),
        (b":authority", named),
        (b":path", path.encode()),
    ]
    others = [field for field in fields if field[0] != b"host"]
    head = sendable_fields("request", [*pseudo, *others])
    left_out = [name.decode() for name, value in others if (name, value) not in head]
    return head, left_out


def _encoded(name: str, value: str) -> bytes:
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        raise ValueError(
            f"the value of {name} has characters that no header can have; percent-encode it"
        ) from None
