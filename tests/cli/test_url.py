"""URLs as people have them: what is fetched, and what is refused."""

from __future__ import annotations

import pytest

from quicferry.cli.url import Url, parse_url


@pytest.mark.parametrize(
    ("text", "host", "port", "path"),
    [
        ("https://example.org", "example.org", 443, "/"),
        ("HTTPS://Example.ORG:4433/A", "example.org", 4433, "/A"),
        ("example.org/a", "example.org", 443, "/a"),
        ("127.0.0.1:4433/", "127.0.0.1", 4433, "/"),
        ("https://example.org:/", "example.org", 443, "/"),
        ("https://example.org.:443/", "example.org.", 443, "/"),
        ("https://a_b.example/", "a_b.example", 443, "/"),
        ("https://bücher.example/", "bücher.example", 443, "/"),
        ("https://example.org?q=1", "example.org", 443, "/?q=1"),
        ("https://example.org/a?", "example.org", 443, "/a?"),
        ("https://example.org/a#part?no", "example.org", 443, "/a"),
        ("https://example.org#part", "example.org", 443, "/"),
        ("https://example.org/a?b#c", "example.org", 443, "/a?b"),
        ("https://example.org/?a=https://b/c@d", "example.org", 443, "/?a=https://b/c@d"),
        ("https://example.org/é?q=ü", "example.org", 443, "/%C3%A9?q=%C3%BC"),
        ("https://example.org/a b", "example.org", 443, "/a%20b"),
        ("https://example.org/%2F%20", "example.org", 443, "/%2F%20"),
        ("https://example.org/a/../b/./c", "example.org", 443, "/b/c"),
        ("https://example.org/../../a", "example.org", 443, "/a"),
        ("https://example.org/a/..", "example.org", 443, "/"),
        ("https://example.org/a/b/.", "example.org", 443, "/a/b/"),
        ("https://example.org/a/%2e%2E/b", "example.org", 443, "/b"),
        ("https://example.org/a//b/...", "example.org", 443, "/a//b/..."),
        ("https://example.org/?a/../b", "example.org", 443, "/?a/../b"),
        ("https://[2001:db8::1]:4433/", "2001:db8::1", 4433, "/"),
        ("https://[fe80::1%25eth0]/", "fe80::1%eth0", 443, "/"),
        ("https://[fe80::1%eth0]:1/", "fe80::1%eth0", 1, "/"),
    ],
)
def test_where_a_url_leads(text: str, host: str, port: int, path: str) -> None:
    assert parse_url(text) == Url(host, port, path, None)


@pytest.mark.parametrize(
    ("text", "authorization"),
    [
        ("https://user:pass@example.org/", "Basic dXNlcjpwYXNz"),
        ("https://user@example.org/", "Basic dXNlcjo="),
        ("https://us%40er:p%3Aa@example.org/", "Basic dXNAZXI6cDph"),
        ("https://a@b:c@example.org/", "Basic YUBiOmM="),
    ],
)
def test_user_in_a_url(text: str, authorization: str) -> None:
    url = parse_url(text)
    assert (url.host, url.authorization) == ("example.org", authorization)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not an address like https://"),
        ("https://", "is not an address like https://"),
        ("https:///a", "is not an address like https://"),
        ("https://[::1/", "is not an address like https://"),
        ("https://[::1]a/", "is not an address like https://"),
        ("http://example.org/", "only https"),
        ("file:///etc/passwd", "is not an address like https://"),
        ("https://example.org:0/", "0 is no valid port"),
        ("https://example.org:65536/", "no valid port"),
        ("https://example.org:99999999999/", "no valid port"),
        ("https://example.org:-1/", "no valid port"),
        ("https://example.org:4433:5/", "no valid port"),
        ("https://example.org:٤/", "no valid port"),
        ("https://exa mple.org/", "cannot be the name of a host"),
        ("https://exa%20mple/", "cannot be the name of a host"),
        ("https://[1.2.3.4]/", "is not an IPv6 address"),
        ("https://[]/", "is not an IPv6 address"),
        ("https://[fe80::1%]/", "no zone"),
        ("https://example.org/a\tb", "control character"),
        ("https://example.org\r\nx: y/", "control character"),
    ],
)
def test_what_is_no_url(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_url(text)
