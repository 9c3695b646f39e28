"""What one side keeps of a handshake that the other does not bring to its end (RFC 9000 7.5)."""

from __future__ import annotations

import tracemalloc

import pytest
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import Epoch
from initials import crypto_frame
from quicferry_lab.simulation.scenario import client_address
from simulated_pair import HOME, Pair, Until, genuine, pair

CLIENT = client_address(4, 1)
PIECE = 1000


def feed(it: Pair, frames: list[bytes], epoch: Epoch, *, to_client: bool = False) -> int:
    """Hand frames to one side as long as it lives; return how many it has taken."""
    sender, receiver = (it.server, it.client) if to_client else (it.client, it.server)
    for number, frame in enumerate(frames):
        datagram = genuine(sender, frame, epoch=epoch)
        if epoch is Epoch.INITIAL:
            datagram = datagram.ljust(1200, b"\0")
        receiver.receive(datagram, HOME if to_client else CLIENT)
        if (reason := receiver.connection._close_event) is not None:
            assert reason.error_code == QuicErrorCode.CRYPTO_BUFFER_EXCEEDED
            return number
    return len(frames)


@pytest.mark.parametrize("epoch", [Epoch.INITIAL, Epoch.ONE_RTT])
def test_a_gap_is_not_filled_with_memory(epoch: Epoch) -> None:
    until = Until.CLIENT_HELLO if epoch is Epoch.INITIAL else Until.QUIET
    with pair(until=until) as it:
        tracemalloc.start()
        try:
            assert feed(it, [crypto_frame(500_000, b"x")], epoch) == 0
            assert tracemalloc.get_traced_memory()[1] < 200_000
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("to_client", [False, True])
def test_a_message_without_end(to_client: bool) -> None:
    """It says that it is 16 MB long, and each piece would be copied with all those before."""
    message = b"\x04\xff\xff\xff" + bytes(1_000_000)
    frames = [
        crypto_frame(start, message[start : start + PIECE])
        for start in range(0, len(message), PIECE)
    ]
    with pair() as it:
        start = it.server.connection._crypto_streams[Epoch.ONE_RTT].sender._buffer_stop
        if to_client:  # after its session tickets
            frames = [
                crypto_frame(start + PIECE * number, message[PIECE * number :][:PIECE])
                for number in range(len(frames))
            ]
        taken = feed(it, frames, Epoch.ONE_RTT, to_client=to_client)
        assert taken * PIECE <= (256 * 1024 if to_client else 16 * 1024)
