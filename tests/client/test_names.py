"""A server's name for the resolver, for TLS and for HTTP."""

from __future__ import annotations

import socket

import pytest

from quicferry.client.names import ascii_host, authority, remote_name, tls_name


@pytest.mark.parametrize(
    ("host", "port", "name", "field"),
    [
        ("example.org", 443, "example.org", "example.org"),
        ("example.org", 4433, "example.org", "example.org:4433"),
        ("example.org.", 443, "example.org", "example.org."),
        ("bücher.example", 443, "xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("127.0.0.1", 443, "127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", 1443, "127.0.0.1", "127.0.0.1:1443"),
        ("2001:db8::443", 443, "2001:db8::443", "[2001:db8::443]"),
        ("fe80::1%eth0", 4433, "fe80::1", "[fe80::1]:4433"),
        ("fe80::1%eth0", 443, "fe80::1", "[fe80::1]"),
    ],
)
def test_names_of_a_server(host: str, port: int, name: str, field: str) -> None:
    host = ascii_host(host)
    assert tls_name(host) == name
    assert authority(remote_name(host, port)) == field


@pytest.mark.parametrize("host", ["..example", f"{'a' * 64}.example", "a..b"])
def test_what_no_host_can_be_called(host: str) -> None:
    with pytest.raises(socket.gaierror):
        ascii_host(host)
