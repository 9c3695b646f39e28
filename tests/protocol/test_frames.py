"""The three frames byte by byte: protocol.md, section 3."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quicferry.protocol import (
    Address,
    ConnectionErrorCode,
    FrameType,
    MigrationAddress,
    MigrationFrame,
    PeerError,
    PoolMigrationAddressFrame,
    ServerMigratedFrame,
    ServerMigrationFrame,
    decode_frame,
    encode_body,
)
from quicferry.protocol.frames import BODY_SIZES

ADDRESS = MigrationAddress(
    Address(IPv4Address("192.0.2.1"), 4433), Address(IPv6Address("2001:db8::1"), 443)
)
BODY = bytes.fromhex("c0000201115120010db800000000000000000000000101bb")

FORMS = [
    pytest.param(0x32, BODY, ServerMigrationFrame(ADDRESS), id="server-migration"),
    pytest.param(0x32, bytes(24), ServerMigrationFrame(None), id="server-migration-unknown"),
    pytest.param(0x33, b"", ServerMigratedFrame(), id="server-migrated"),
    pytest.param(0x34, BODY, PoolMigrationAddressFrame(ADDRESS), id="pool-migration-address"),
]


def test_types() -> None:
    assert {kind.name: int(kind) for kind in FrameType} == {
        "SERVER_MIGRATION": 0x32,
        "SERVER_MIGRATED": 0x33,
        "POOL_MIGRATION_ADDRESS": 0x34,
    }
    assert set(BODY_SIZES) == set(FrameType)


@pytest.mark.parametrize(("frame_type", "body", "frame"), FORMS)
def test_both_directions(frame_type: int, body: bytes, frame: MigrationFrame) -> None:
    assert decode_frame(frame_type, body) == frame
    assert frame.type == frame_type
    assert encode_body(frame) == body
    assert BODY_SIZES[frame.type] == len(body)


@pytest.mark.parametrize(("frame_type", "body", "frame"), FORMS)
@pytest.mark.parametrize("change", [-24, -23, -1, 1, 24])
def test_truncated_and_trailing_bytes(
    frame_type: int, body: bytes, frame: MigrationFrame, change: int
) -> None:
    if len(body) + change < 0:
        change = -change
    changed = (body + bytes(24))[: len(body) + change]
    with pytest.raises(PeerError) as caught:
        decode_frame(frame_type, changed)
    assert caught.value.code is ConnectionErrorCode.FRAME_ENCODING_ERROR
    assert int(caught.value.code) == 0x7


@given(st.sampled_from(FrameType), st.binary(max_size=50))
def test_any_body_gives_a_frame_or_the_error(frame_type: FrameType, body: bytes) -> None:
    if len(body) == BODY_SIZES[frame_type]:
        assert encode_body(decode_frame(frame_type, body)) == body
    else:
        with pytest.raises(PeerError) as caught:
            decode_frame(frame_type, body)
        assert caught.value.code is ConnectionErrorCode.FRAME_ENCODING_ERROR


@given(st.binary(min_size=24, max_size=24))
def test_round_trip_of_addresses(body: bytes) -> None:
    for frame_type in (FrameType.SERVER_MIGRATION, FrameType.POOL_MIGRATION_ADDRESS):
        assert encode_body(decode_frame(frame_type, body)) == body


def test_pool_address_of_zeros_is_no_announcement() -> None:
    assert decode_frame(0x34, bytes(24)) == PoolMigrationAddressFrame(MigrationAddress())
