"""Negotiation: protocol.md, section 2."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicferry.protocol import (
    ALL_PROTOCOLS,
    SUITE_PARAMETER_ID,
    ConnectionErrorCode,
    MigrationProtocol,
    PeerError,
    accept_suite,
    answer_suite,
    encode_suite,
    protocol_from_name,
    protocol_name,
)
from quicferry.protocol.varint import decode_varint, encode_varint

NONE = MigrationProtocol(0)
EXPLICIT = MigrationProtocol.EXPLICIT
SYMMETRIC = MigrationProtocol.SYMMETRIC
MALFORMED = [b"", b"\x40", b"\x80\0\0", b"\xc0" + bytes(6), b"\x0f\x00", b"\x40\x0f\0", bytes(8)]

suites = st.integers(1, 15).map(MigrationProtocol)


def assert_parameter_error(caught: pytest.ExceptionInfo[PeerError]) -> None:
    assert caught.value.code is ConnectionErrorCode.TRANSPORT_PARAMETER_ERROR
    assert int(caught.value.code) == 0x8


def test_code_points() -> None:
    assert SUITE_PARAMETER_ID == 0x64
    assert {protocol.name: int(protocol) for protocol in MigrationProtocol} == {
        "EXPLICIT": 0x1,
        "POOL_OF_ADDRESSES": 0x2,
        "SYMMETRIC": 0x4,
        "SYNCHRONIZED_SYMMETRIC": 0x8,
    }
    assert int(ALL_PROTOCOLS) == 0xF


@given(suites)
def test_value_is_one_varint(suite: MigrationProtocol) -> None:
    assert encode_suite(suite) == bytes([suite])


@given(suites, suites)
def test_server_answers_with_the_intersection(
    offered: MigrationProtocol, supported: MigrationProtocol
) -> None:
    answer = answer_suite(encode_suite(offered), supported)
    assert answer == MigrationProtocol(int(offered) & int(supported))
    assert accept_suite(encode_suite(answer), offered) == answer


def test_empty_intersection_is_answered() -> None:
    answer = answer_suite(encode_suite(EXPLICIT), SYMMETRIC)
    assert answer == NONE
    assert encode_suite(answer) == b"\0"
    assert accept_suite(b"\0", EXPLICIT) == NONE


@given(st.integers(1, (1 << 62) - 1))
def test_server_ignores_unknown_bits(mask: int) -> None:
    assert answer_suite(encode_varint(mask), ALL_PROTOCOLS) == MigrationProtocol(mask & 0xF)


@pytest.mark.parametrize("value", [b"\0", b"\x40\0", b"\x80\0\0\0", *MALFORMED], ids=bytes.hex)
def test_server_refuses_nothing_and_nonsense(value: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        answer_suite(value, ALL_PROTOCOLS)
    assert_parameter_error(caught)


@pytest.mark.parametrize("value", MALFORMED, ids=bytes.hex)
def test_client_refuses_what_is_not_one_varint(value: bytes) -> None:
    with pytest.raises(PeerError) as caught:
        accept_suite(value, ALL_PROTOCOLS)
    assert_parameter_error(caught)


@given(suites, st.integers(0, (1 << 62) - 1))
def test_client_refuses_what_it_did_not_offer(offered: MigrationProtocol, mask: int) -> None:
    """A bit that it did not offer, and one that nobody knows, are the same error."""
    if mask & ~int(offered):
        with pytest.raises(PeerError) as caught:
            accept_suite(encode_varint(mask), offered)
        assert_parameter_error(caught)
    else:
        assert accept_suite(encode_varint(mask), offered) == MigrationProtocol(mask)


@pytest.mark.parametrize(
    "value", [b"\x05", b"\x40\x05", b"\x80\0\0\x05", b"\xc0" + bytes(6) + b"\5"]
)
def test_a_varint_may_be_longer_than_it_needs_to_be(value: bytes) -> None:
    assert accept_suite(value, ALL_PROTOCOLS) == EXPLICIT | SYMMETRIC
    assert answer_suite(value, ALL_PROTOCOLS) == EXPLICIT | SYMMETRIC


@given(st.binary(max_size=10))
def test_any_value_gives_a_suite_or_the_error(value: bytes) -> None:
    for read in (accept_suite, answer_suite):
        error = None
        try:
            assert int(read(value, ALL_PROTOCOLS)) <= 0xF
        except PeerError as exc:
            error = exc
        if error is not None:
            assert error.code is ConnectionErrorCode.TRANSPORT_PARAMETER_ERROR
            assert "server_migration_suite" in error.reason


@pytest.mark.parametrize(
    ("protocol", "name"),
    [
        (MigrationProtocol.EXPLICIT, "explicit"),
        (MigrationProtocol.POOL_OF_ADDRESSES, "pool-of-addresses"),
        (MigrationProtocol.SYMMETRIC, "symmetric"),
        (MigrationProtocol.SYNCHRONIZED_SYMMETRIC, "synchronized-symmetric"),
    ],
)
def test_names(protocol: MigrationProtocol, name: str) -> None:
    assert protocol_name(protocol) == name
    assert protocol_from_name(name) is protocol


def test_names_of_sets() -> None:
    assert protocol_name(NONE) == "none"
    assert protocol_name(EXPLICIT | SYMMETRIC) == "explicit,symmetric"


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="explicit, pool-of-addresses, symmetric"):
        protocol_from_name("teleport")


@given(st.integers(0, (1 << 62) - 1))
def test_varint_round_trip(value: int) -> None:
    encoded = encode_varint(value)
    assert decode_varint(encoded) == value
    assert len(encoded) == next(n for n in (1, 2, 4, 8) if value < 1 << (8 * n - 2))


@pytest.mark.parametrize(
    ("value", "encoded"),
    [  # the examples of RFC 9000 A.1
        (151_288_809_941_952_652, "c2197c5eff14e88c"),
        (494_878_333, "9d7f3e7d"),
        (15_293, "7bbd"),
        (37, "25"),
    ],
)
def test_varint_examples(value: int, encoded: str) -> None:
    assert encode_varint(value).hex() == encoded
    assert decode_varint(bytes.fromhex(encoded)) == value


@pytest.mark.parametrize("value", [-1, 1 << 62])
def test_varint_out_of_range(value: int) -> None:
    with pytest.raises(ValueError, match="does not fit"):
        encode_varint(value)
