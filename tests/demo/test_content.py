from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quicferry_lab.demo import content
from quicferry_lab.demo.content import BLOCK_SIZE, Verifier, WrongBodyError


def test_a_body_is_a_function_of_seed_and_offset() -> None:
    long = content.body(7, 3 * BLOCK_SIZE + 5)
    assert content.body(7, 100) == long[:100]
    assert content.block(7, 2) == long[2 * BLOCK_SIZE : 3 * BLOCK_SIZE]
    assert content.body(8, 100) != long[:100]
    assert len(set(long)) == 256


@given(
    size=st.integers(0, 3 * BLOCK_SIZE),
    cuts=st.lists(st.integers(1, 2 * BLOCK_SIZE), max_size=8),
)
def test_a_right_body_is_verified_however_it_is_cut(size: int, cuts: list[int]) -> None:
    body = content.body(1, size)
    verifier = Verifier(1, size)
    for cut in cuts:
        verifier.feed(body[:cut])
        body = body[cut:]
    verifier.feed(body)
    verifier.finish()
    assert verifier.verified == size


def _check(received: bytes, size: int) -> None:
    verifier = Verifier(1, size)
    verifier.feed(received)
    verifier.finish()


@pytest.mark.parametrize("position", [0, BLOCK_SIZE - 1, BLOCK_SIZE, 2 * BLOCK_SIZE + 99])
def test_a_changed_byte_is_found(position: int) -> None:
    body = bytearray(content.body(1, 2 * BLOCK_SIZE + 100))
    body[position] ^= 1
    with pytest.raises(WrongBodyError, match="is wrong between"):
        _check(bytes(body), len(body))


@pytest.mark.parametrize("missing", [1, 100, BLOCK_SIZE])
def test_a_missing_end_is_found(missing: int) -> None:
    size = 2 * BLOCK_SIZE
    with pytest.raises(WrongBodyError):
        _check(content.body(1, size - missing), size)


def test_bytes_after_the_end_are_found() -> None:
    with pytest.raises(WrongBodyError, match="more arrived"):
        _check(content.body(1, 1001), 1000)


def test_lost_bytes_in_the_middle_are_found() -> None:
    body = content.body(1, 3 * BLOCK_SIZE)
    with pytest.raises(WrongBodyError):
        _check(body[:5000] + body[5001:], len(body))
