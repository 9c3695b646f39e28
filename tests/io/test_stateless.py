"""Stateless resets are bounded in size and number (RFC 9000 10.3)."""

from __future__ import annotations

import pytest

from quicferry.io import StatelessReset

SECRET = bytes(range(32))
HERE, THERE = ("192.0.2.1", 443), ("192.0.2.2", 443)
CID = b"8 bytes."


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_token_follows_from_key_address_and_connection_id() -> None:
    token = StatelessReset(SECRET).token(HERE, CID)
    assert len(token) == 16
    assert token == StatelessReset(SECRET).token(HERE, CID)
    others = {
        StatelessReset(bytes(32)).token(HERE, CID),
        StatelessReset(SECRET).token(THERE, CID),
        StatelessReset(SECRET).token((HERE[0], 444), CID),
        StatelessReset(SECRET).token(HERE, CID[::-1]),
    }
    assert len(others) == 4
    assert token not in others


@pytest.mark.parametrize("size", [22, 30, 42, 43, 44, 60, 1200, 65535])
def test_it_is_smaller_than_what_it_answers(size: int) -> None:
    for _ in range(50):
        answer = StatelessReset(SECRET).answer(bytes(size), HERE, CID)
        assert answer is not None
        assert 21 <= len(answer) < min(size, 60)
        assert len(answer) == size - 1 or len(answer) >= 42
        assert answer[0] & 0xC0 == 0x40


def test_small_datagrams_are_not_answered() -> None:
    for size in range(22):
        assert StatelessReset(SECRET).answer(bytes(size), HERE, CID) is None


def test_two_servers_do_not_answer_each_other_for_ever() -> None:
    one, other = StatelessReset(SECRET), StatelessReset(SECRET)
    datagram: bytes | None = bytes(1200)
    for _ in range(60):
        if datagram is None:
            break
        datagram = one.answer(datagram, HERE, datagram[1:9])
        one, other = other, one
    assert datagram is None


def test_a_flood_is_answered_in_part() -> None:
    clock = Clock()
    resets = StatelessReset(SECRET, clock)

    def answered(count: int) -> int:
        return sum(resets.answer(bytes(50), HERE, CID) is not None for _ in range(count))

    assert answered(1000) == 100
    clock.now += 0.5
    assert answered(1000) == 50
    clock.now += 1000
    assert answered(1000) == 100
