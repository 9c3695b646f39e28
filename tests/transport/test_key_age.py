"""No key encrypts more packets than it may, however long a connection lives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.crypto import CryptoContext
from quicferry_lab.simulation import Exchange, Path
from simulated_pair import AWAY, HOME, pair

from quicferry.protocol import MigrationProtocol
from quicferry.transport import Connection
from quicferry.transport.key_age import LIFETIME, KeyAge

SHORT = 300
IN_FLIGHT = 1000
"""More packets than are under way at once here."""
LONG_HEADER = 0x80


@contextmanager
def counted() -> Iterator[Counter[bytes]]:
    """Count the 1-RTT packets that each key encrypts, with lives of `SHORT` packets."""
    packets: Counter[bytes] = Counter()
    encrypt = CryptoContext.encrypt_packet

    def counting(crypto: CryptoContext, header: bytes, payload: bytes, number: int) -> bytes:
        if not header[0] & LONG_HEADER:
            assert crypto.secret is not None
            packets[crypto.secret] += 1
        return encrypt(crypto, header, payload, number)

    with (
        patch.object(CryptoContext, "encrypt_packet", counting),
        patch("quicferry.transport.key_age.LIFETIME", SHORT),
    ):
        yield packets


def test_keys_are_updated_while_data_flows_and_servers_move() -> None:
    with counted() as packets, pair(path=Path(delay=0.02, loss=0.02)) as it:
        for destination in (AWAY, HOME):
            it.exchange(Exchange(1_000_000, 1_000_000), limit=60)
            it.imminent(MigrationProtocol.SYMMETRIC)
            it.relocate(destination)
        it.exchange(Exchange(1_000_000, 1_000_000), limit=60)
    assert sum(packets.values()) > 4 * (SHORT + IN_FLIGHT)  # of both sides
    assert max(packets.values()) <= SHORT + IN_FLIGHT


@pytest.mark.parametrize("stock", ["client", "server"])
def test_peers_that_never_update_keys_follow(stock: str) -> None:
    client = QuicConnection if stock == "client" else Connection
    server = QuicConnection if stock == "server" else Connection
    with counted() as packets, pair(client_type=client, server_type=server) as it:
        it.exchange(Exchange(1_000_000, 1_000_000))
    assert len(packets) > 4


def test_lives_that_a_handover_did_not_count_are_short_enough() -> None:
    age, phase, updates = KeyAge(), 0, []
    for number in range(0, 4 * LIFETIME, LIFETIME // 2):
        if age.is_due(number, phase, number - 1):
            updates.append(number)
            phase = 1 - phase
    assert updates == [LIFETIME, 2 * LIFETIME, 3 * LIFETIME]
    thawed = KeyAge()
    numbers = range(4 * LIFETIME - 1, 6 * LIFETIME, 1000)
    first = next(number for number in numbers if thawed.is_due(number, phase, number - 1))
    assert first - updates[-1] <= 1 << 23


def test_keys_are_not_updated_twice_without_an_answer() -> None:
    age = KeyAge()
    assert not age.is_due(0, 0, -1)
    assert age.is_due(LIFETIME, 0, 0)
    for number in range(LIFETIME + 1, 3 * LIFETIME, LIFETIME // 2):
        assert not age.is_due(number, 1, LIFETIME - 1)
    assert age.is_due(3 * LIFETIME, 1, LIFETIME + 1)
