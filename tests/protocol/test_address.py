"""Addresses: their form in text and on the wire (section 3), and which are refused (section 5)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quicferry.protocol import Address, MigrationAddress, refusal
from quicferry.protocol.address import MIGRATION_ADDRESS_SIZE

A = Address.parse
V4, V6 = A("192.0.2.1:4433"), A("[2001:db8::1]:443")
LOCAL4, LOCAL6 = A("127.0.0.1:4433"), A("[::1]:4433")
LINK4, LINK6 = A("169.254.7.7:4433"), A("[fe80::7]:4433")

ports = st.integers(0, 0xFFFF)
ipv4 = st.builds(Address, st.ip_addresses(v=4), ports)
ipv6 = st.builds(Address, st.ip_addresses(v=6), ports)


# Text


@given(ipv4 | ipv6)
def test_text_round_trip(address: Address) -> None:
    assert Address.parse(str(address)) == address


def test_text_form() -> None:
    assert str(V4) == "192.0.2.1:4433"
    assert str(V6) == "[2001:db8::1]:443"
    assert (V4.family, V6.family) == (4, 6)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "192.0.2.1",
        "192.0.2.1:",
        ":4433",
        "192.0.2.1:65536",
        "192.0.2.1:-1",
        "192.0.2.1:+1",
        "192.0.2.1: 1",
        "192.0.2.1:٣",
        "192.0.2:1",
        "[192.0.2.1]:1",
        "2001:db8::1:443",
        "[2001:db8::1]",
        "[2001:db8::1:443",
        "x2001:db8::1]:443",
        "[2001:db8::1x:443",
        "localhost:4433",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match=r"write 192\.0\.2\.1:4433 or \[2001:db8::1\]:4433"):
        Address.parse(text)


@pytest.mark.parametrize("port", [-1, 65536])
def test_port_out_of_range(port: int) -> None:
    with pytest.raises(ValueError, match="port"):
        Address(IPv4Address("192.0.2.1"), port)


def test_migration_address_in_text() -> None:
    both = MigrationAddress(V4, V6)
    assert str(both) == "192.0.2.1:4433,[2001:db8::1]:443"
    assert MigrationAddress.parse(str(both)) == both
    assert MigrationAddress.parse("[2001:db8::1]:443, 192.0.2.1:4433") == both
    assert MigrationAddress.parse("192.0.2.1:4433") == MigrationAddress.of(V4)
    assert str(MigrationAddress()) == "unknown"
    with pytest.raises(ValueError, match="at most one address of each family"):
        MigrationAddress.parse("192.0.2.1:1,192.0.2.2:1")


def test_family_in_the_wrong_place() -> None:
    with pytest.raises(ValueError, match="not an IPv4 address"):
        MigrationAddress(ipv4=V6)
    with pytest.raises(ValueError, match="not an IPv6 address"):
        MigrationAddress(ipv6=V4)


def test_for_family() -> None:
    assert MigrationAddress(V4, V6).for_family(4) == V4
    assert MigrationAddress(V4, V6).for_family(6) == V6
    assert MigrationAddress.of(V4).for_family(6) is None


# Wire: IPv4 (4), its port (2), IPv6 (16), its port (2), network byte order, absent all zero

IPV4_PART = bytes([192, 0, 2, 1, 0x11, 0x51])
IPV6_PART = bytes.fromhex("20010db8000000000000000000000001") + b"\x01\xbb"


@pytest.mark.parametrize(
    ("address", "wire"),
    [
        (MigrationAddress(V4, V6), IPV4_PART + IPV6_PART),
        (MigrationAddress(V4), IPV4_PART + bytes(18)),
        (MigrationAddress(ipv6=V6), bytes(6) + IPV6_PART),
        (MigrationAddress(), bytes(24)),
    ],
    ids=["both", "ipv4", "ipv6", "unknown"],
)
def test_wire_form(address: MigrationAddress, wire: bytes) -> None:
    assert len(wire) == MIGRATION_ADDRESS_SIZE == 24
    assert address.encode() == wire
    assert MigrationAddress.decode(wire) == address


@given(st.builds(MigrationAddress, st.none() | ipv4, st.none() | ipv6))
def test_wire_round_trip(address: MigrationAddress) -> None:
    wire = address.encode()
    assert len(wire) == 24
    decoded = MigrationAddress.decode(wire)
    assert decoded.encode() == wire
    zero4, zero6 = A("0.0.0.0:0"), A("[::]:0")  # these stand for an absent family
    assert decoded.ipv4 == (None if address.ipv4 == zero4 else address.ipv4)
    assert decoded.ipv6 == (None if address.ipv6 == zero6 else address.ipv6)


@given(st.binary(min_size=24, max_size=24))
def test_all_24_bytes_count(wire: bytes) -> None:
    assert MigrationAddress.decode(wire).encode() == wire


@pytest.mark.parametrize("size", [0, 1, 6, 23, 25, 48])
def test_truncated_and_trailing_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="24 bytes"):
        MigrationAddress.decode(bytes(size))


def test_a_family_is_present_if_any_of_its_bytes_is_set() -> None:
    port_only = MigrationAddress.decode(bytes(4) + b"\0\1" + bytes(18))
    assert port_only.ipv4 == A("0.0.0.0:1")
    host_only = MigrationAddress.decode(bytes(6) + bytes(15) + b"\1\0\0")
    assert host_only.ipv6 == A("[::1]:0")


# Refusal

PUBLIC4, PUBLIC6 = A("8.0.0.1:4433"), A("[2600::1]:4433")


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("224.0.0.1", "multicast"),
        ("239.255.255.250", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "this network"),
        ("192.88.99.1", "relay"),
        ("[ff02::1]", "multicast"),
        ("[::]", "unspecified"),
        ("[::ffff:8.0.0.2]", "IPv4-mapped"),
        ("[::ffff:127.0.0.1]", "IPv4-mapped"),
        ("[::127.0.0.1]", "IPv4-compatible"),
        ("[::8.0.0.2]", "IPv4-compatible"),
        ("[64:ff9b::127.0.0.1]", "not global"),
        ("[64:ff9b::10.0.0.1]", "not global"),
        ("[64:ff9b::224.0.0.1]", "not global"),
        ("[64:ff9b:1::8.0.0.2]", "translator"),
        ("[64:ff9b:1:ffff::10.0.0.1]", "translator"),
        ("[2002:7f00:1::1]", "not global"),
        ("[2002:c0a8:101::1]", "not global"),
        ("[2001:0:a00:1::f7ff:fffd]", "not global"),  # the server of Teredo is 10.0.0.1
        ("[2001:0:800:2::80ff:fffe]", "not global"),  # its client is 127.0.0.1
    ],
)
def test_nobody_may_name(host: str, why: str) -> None:
    address = A(f"{host}:4433")
    for server in [PUBLIC4, V4, LOCAL4, LINK4] if address.family == 4 else [PUBLIC6, V6, LOCAL6]:
        reason = refusal(address, server)
        assert reason is not None
        assert why in reason
    assert refusal(address, address) is not None


KINDS = {
    "private": ["10.0.0.1", "10.255.255.254", "172.16.0.1", "172.31.255.254", "192.168.1.1"],
    "shared": ["100.64.0.1", "100.127.255.254"],
    "loopback": ["127.0.0.1", "127.255.0.1"],
    "link-local": ["169.254.1.1", "169.254.169.254"],
    "documentation": ["192.0.2.9", "198.51.100.1", "203.0.113.255"],
    "benchmarks": ["198.18.0.1", "198.19.255.254"],
    "protocols": ["192.0.0.1", "192.0.0.170"],
    "reserved": ["240.0.0.1", "255.255.255.254"],
}
KINDS6 = {
    "private": ["[fc00::1]", "[fd00::1]", "[fdff:ffff::1]"],
    "loopback": ["[::1]"],
    "link-local": ["[fe80::1]", "[febf::1]", "[fe80::1%eth0]"],
    "documentation": ["[2001:db8::9]", "[2001:db8:ffff::]", "[3fff:fff::1]"],
    "benchmarks": ["[2001:2::1]"],
    "protocols": ["[2001:1::1]", "[2001:20::1]", "[2001:1ff::1]"],
    "site-local": ["[fec0::1]"],
    "reserved": ["[100::1]", "[200::1]", "[4000::1]", "[5f00::1]"],
    "6to4": ["[2002:800:2::1]", "[2002:800:3::9]"],
    "Teredo": ["[2001:0:800:2::f7ff:fffd]", "[2001:0:800:3::f7ff:fffc]"],
}
OF_A_KIND = [(kind, host) for kinds in (KINDS, KINDS6) for kind in kinds for host in kinds[kind]]


@pytest.mark.parametrize(("kind", "host"), OF_A_KIND)
def test_from_a_public_server_only_what_is_public(kind: str, host: str) -> None:
    address = A(f"{host}:4433")
    reason = refusal(address, PUBLIC4 if address.family == 4 else PUBLIC6)
    assert reason is not None
    assert kind in reason


@pytest.mark.parametrize(("kind", "host"), OF_A_KIND)
def test_one_that_is_not_public_may_name_its_own_kind(kind: str, host: str) -> None:
    server = A(f"{host}:4433")
    kinds, public = (KINDS, PUBLIC4) if server.family == 4 else (KINDS6, PUBLIC6)
    for other, hosts in kinds.items():
        may_name = other == kind or (kind, other) == ("loopback", "documentation")
        for each in hosts:
            assert (refusal(A(f"{each}:4433"), server) is None) == may_name, each
    assert refusal(public, server) is None


@pytest.mark.parametrize(
    "host",
    [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "[2000::1]",
        "[2001:200::1]",
        "[2001:db7:ffff::1]",
        "[2001:db9::1]",
        "[2003::1]",
        "[2a00:1450::1]",
        "[3ffe:ffff::1]",
        "[64:ff9b::8.0.0.2]",
    ],
)
def test_what_is_public_may_be_named_by_all(host: str) -> None:
    address = A(f"{host}:4433")
    for server in [PUBLIC4, V4, LOCAL4] if address.family == 4 else [PUBLIC6, V6, LOCAL6]:
        assert refusal(address, server) is None


@pytest.mark.parametrize("kind_of_server", [PUBLIC4, V4])
def test_ports_of_other_services(kind_of_server: Address) -> None:
    """RFC 9000 21.5: below 1024 only HTTP's, and the one that the server has itself."""
    host = kind_of_server.host

    def is_refused(port: int, server_port: int) -> bool:
        return refusal(Address(host, port), Address(host, server_port)) is not None

    for port in (1, 22, 53, 79, 81, 123, 161, 442, 444, 853, 1023):
        assert is_refused(port, 443)
        assert is_refused(port, 4433)
        assert not is_refused(port, port)
    for port in (80, 443, 1024, 4433, 65535):
        assert not any(is_refused(port, server_port) for server_port in (53, 80, 443, 4433))
    assert is_refused(0, 0)
    assert "53" in (refusal(Address(host, 53), kind_of_server) or "")


def test_a_server_at_all_its_addresses_may_name_any_kind() -> None:
    """Its own machine asks, before any client does."""
    for wildcard, kinds in ((A("0.0.0.0:4433"), KINDS), (A("[::]:4433"), KINDS6)):
        for kind in kinds:
            for host in kinds[kind]:
                assert refusal(A(f"{host}:4433"), wildcard) is None
    assert refusal(A("224.0.0.1:4433"), A("0.0.0.0:4433")) is not None


@given(st.ip_addresses())
@example(IPv4Address("192.0.0.9"))
@example(IPv6Address("2001:4:112::1"))
@example(IPv6Address("2002::1"))
def test_nothing_is_taken_for_public_that_python_does_not(host: IPv4Address | IPv6Address) -> None:
    """Whatever its version knows of IANA's registries."""
    server = PUBLIC4 if host.version == 4 else PUBLIC6
    is_nat64 = host in ip_network("64:ff9b::/96")
    if refusal(Address(host, 4433), server) is None and not is_nat64:
        assert host.is_global
        assert not host.is_multicast
        assert not host.is_reserved
