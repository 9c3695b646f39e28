"""Addresses: their form in text and on the wire (section 3), and which are refused (section 5)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
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


@pytest.mark.parametrize(
    ("address", "current", "why"),
    [
        ("224.0.0.1:4433", V4, "multicast"),
        ("239.255.255.250:1900", V4, "multicast"),
        ("[ff02::1]:4433", V6, "multicast"),
        ("255.255.255.255:4433", V4, "broadcast"),
        ("192.0.2.9:0", V4, "port is 0"),
        ("[2001:db8::9]:0", V6, "port is 0"),
        ("0.0.0.0:4433", V4, "unspecified"),
        ("[::]:4433", V6, "unspecified"),
        ("127.0.0.1:4433", V4, "loopback"),
        ("127.255.0.1:4433", V4, "loopback"),
        ("[::1]:4433", V6, "loopback"),
        ("127.0.0.1:4433", LINK4, "loopback"),
        ("169.254.169.254:80", V4, "link-local"),
        ("[fe80::1]:4433", V6, "link-local"),
        ("169.254.1.1:4433", LOCAL4, "link-local"),
        ("[::ffff:192.0.2.9]:4433", V6, "IPv4-mapped"),
        ("[::ffff:127.0.0.1]:4433", LOCAL6, "IPv4-mapped"),
    ],
)
def test_refused(address: str, current: Address, why: str) -> None:
    reason = refusal(A(address), current)
    assert reason is not None
    assert why in reason


@pytest.mark.parametrize(
    ("address", "current"),
    [
        ("198.51.100.1:4433", V4),
        ("192.0.2.1:1", V4),
        ("10.0.0.1:65535", V4),
        ("[2001:db8::2]:4433", V6),
        ("[fd00::1]:4433", V6),
        ("127.0.0.2:4433", LOCAL4),
        ("[::1]:4434", LOCAL6),
        ("169.254.7.8:4433", LINK4),
        ("[fe80::8]:4433", LINK6),
        ("192.0.2.1:4433", LOCAL4),
    ],
)
def test_accepted(address: str, current: Address) -> None:
    assert refusal(A(address), current) is None


@given(st.integers(1, 0xFFFF), st.ip_addresses())
def test_refusal_has_an_answer_for_every_address(
    port: int, host: IPv4Address | IPv6Address
) -> None:
    reason = refusal(Address(host, port), V4)
    if host.is_multicast or host.is_unspecified or host.is_loopback or host.is_link_local:
        assert reason is not None
