"""URLs as people give them to curl and browsers (RFC 3986, RFC 6874)."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from urllib.parse import quote, unquote_to_bytes

from quicferry.client import DEFAULT_PORT

_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_AFTER_SCHEME = re.compile(
    r"(?:(?P<user>[^/?#]*)@)?"
    r"(?P<host>\[[^]/?#]*\]|[^:/?#\[\]]*)"
    r"(?::(?P<port>[^/?#]*))?"
    r"(?P<path>/[^?#]*)?"
    r"(?P<query>\?[^#]*)?"
    r"(?:#.*)?",
    re.DOTALL,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NOT_IN_NAMES = re.compile(r"[\s!\"#$%&'()*+,/:;<=>?@\[\\\]^`{|}]")
_KEPT = "!$%&'()*+,/:;=?@[]~-._"
"""What stays as it is in a path or query; all else is percent-encoded, as browsers do it."""


@dataclass(frozen=True)
class Url:
    """What a URL says.

    Attributes:
        host: The server's name or address, for the resolver; an IPv6 address may have a zone.
        port: Its port.
        path: The path, with the query, percent-encoded and without dot segments.
        authorization: The value of an ``authorization`` header; None if no user is named.
    """

    host: str
    port: int
    path: str
    authorization: str | None


def parse_url(text: str) -> Url:
    """Parse a URL; without a scheme it is taken for one of https.

    Raises:
        ValueError: If it is none that can be fetched; the text says why.
    """
    if _CONTROL.search(text):
        raise ValueError("the URL has a control character in it")
    scheme = _SCHEME.match(text)
    found = _AFTER_SCHEME.fullmatch(text, scheme.end() if scheme else 0)
    if found is None or not found["host"]:
        raise ValueError(f"{text} is not an address like https://example.org/path")
    if scheme and scheme[1].lower() != "https":
        raise ValueError(
            f"{text} is not an address like https://example.org/path; HTTP/3 knows only https"
        )
    path = _without_dots(quote(found["path"] or "/", safe=_KEPT))
    query = quote(found["query"] or "", safe=_KEPT)
    return Url(_host(found["host"]), _port(found["port"]), path + query, _basic(found["user"]))


def _host(host: str) -> str:
    if not host.startswith("["):
        host = host.lower()
        if _NOT_IN_NAMES.search(host):
            raise ValueError(f"{host} cannot be the name of a host")
        return host
    address, percent, zone = host[1:-1].partition("%")
    try:
        IPv6Address(address)
    except ValueError as exc:
        raise ValueError(f"{host} is not an IPv6 address: {exc}") from exc
    zone = zone.removeprefix("25")  # RFC 6874 wants it encoded, and people copy it as ip(8) has it
    if percent and not zone:
        raise ValueError(f"{host} names no zone after the %")
    return f"{address}%{zone}" if zone else address


def _port(port: str | None) -> int:
    if not port:
        return DEFAULT_PORT
    if not (port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536 and len(port) < 6):
        raise ValueError(f"{port} is no valid port, which is a number from 1 to 65535")
    return int(port)


def _basic(user: str | None) -> str | None:
    if user is None:
        return None
    name, _, password = user.partition(":")
    credentials = unquote_to_bytes(name) + b":" + unquote_to_bytes(password)
    return f"Basic {base64.b64encode(credentials).decode()}"


def _without_dots(path: str) -> str:
    """Resolve what is relative in a path (RFC 3986 5.2.4)."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for number, segment in enumerate(segments, 1):
        plain = segment.lower().replace("%2e", ".")
        if plain == "..":
            del kept[-1:]
        elif plain != ".":
            kept.append(segment)
        if plain in (".", "..") and number == len(segments):
            kept.append("")
    return "/" + "/".join(kept)
