"""GOAWAY on the control stream, in whatever pieces it comes."""

from __future__ import annotations

import pytest
from aioquic.buffer import encode_uint_var
from aioquic.h3.connection import FrameError, FrameType, IdError, encode_frame

from quicferry.transport.http3.goaway import GoawayReader, encode_goaway

CONTROL = encode_uint_var(0)
SETTINGS = encode_frame(FrameType.SETTINGS, b"\x01\x00\x07\x00")
UNKNOWN = encode_frame(0x21, bytes(300))


def test_it_is_found_in_any_pieces() -> None:
    stream = CONTROL + SETTINGS + UNKNOWN + encode_goaway(400) + UNKNOWN + encode_goaway(4)
    for size in range(1, len(stream) + 1):
        reader = GoawayReader()
        seen: list[int | None] = []
        for start in range(0, len(stream), size):
            reader.feed(stream[start : start + size])
            if reader.first_refused not in (None, *seen[-1:]):
                seen.append(reader.first_refused)
        assert seen[-1] == 4
        assert set(seen) <= {400, 4}
        if size < 300:
            assert seen == [400, 4]


def test_what_follows_is_not_kept() -> None:
    reader = GoawayReader()
    reader.feed(CONTROL + encode_uint_var(0x21) + encode_uint_var(1 << 40))
    for _ in range(100):
        reader.feed(bytes(10_000))
    assert len(vars(reader)["_pending"]) == 0


@pytest.mark.parametrize(
    ("frames", "error"),
    [
        (encode_goaway(3), IdError),
        (encode_goaway(4) + encode_goaway(8), IdError),
        (encode_frame(FrameType.GOAWAY, b""), FrameError),
        (encode_frame(FrameType.GOAWAY, b"\x04\x00"), FrameError),
        (encode_frame(FrameType.GOAWAY, b"\x40"), FrameError),
        (encode_frame(FrameType.GOAWAY, bytes(9)), FrameError),
    ],
    ids=["no request", "more again", "empty", "too long", "cut", "much too long"],
)
def test_what_is_malformed(frames: bytes, error: type[Exception]) -> None:
    with pytest.raises(error):
        GoawayReader().feed(CONTROL + SETTINGS + frames)
