"""The names of a server: for the resolver, for TLS and for HTTP."""

from __future__ import annotations

import re
import socket

DEFAULT_PORT = 443

_ZONE = re.compile(r"%[^]]*")


def ascii_host(host: str) -> str:
    """Return a host name as the resolver and TLS know it, with international labels encoded.

    Args:
        host: A name or an IP address; an IPv6 address may have a zone, as in ``fe80::1%eth0``.

    Raises:
        socket.gaierror: If it cannot be the name of a host.
    """
    if ":" in host:
        return host
    try:
        return host.encode("idna").decode()  # RFC 3490; it looks at the length of labels, too
    except UnicodeError as exc:
        raise socket.gaierror(socket.EAI_NONAME, "it cannot be the name of a host") from exc


def tls_name(host: str) -> str:
    """Return the name that a certificate has to be for.

    It has no final dot (RFC 6066 3), and an address has no zone (RFC 6874 4).
    """
    return _ZONE.sub("", host).removesuffix(".")


def remote_name(host: str, port: int) -> str:
    """Return how people are told of a host and port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def authority(remote: str) -> str:
    """Return what `remote_name` returned as HTTP has it in ``:authority``.

    A default port is left out, as everyone does it (RFC 9110 4.2.3): applications compare it with
    names that have none. Zones are the business of this host alone (RFC 6874 4).
    """
    return _ZONE.sub("", remote).removesuffix(f":{DEFAULT_PORT}")
