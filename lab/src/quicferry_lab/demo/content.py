"""Bodies whose every byte is a function of its offset, so that any part can be checked anywhere.

A body is named by a seed. It is cut into blocks of 16 KiB, and block ``i`` is the output of
SHAKE-128 for ``"seed:i"``. Server and client can make any block without the ones before it, and a
download of any length is checked block by block while it arrives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from quicferry.protocol import QuicferryError

BLOCK_SIZE = 16384


class WrongBodyError(QuicferryError):
    """A body that arrived is not the one that was sent."""


def block(seed: int, index: int) -> bytes:
    """Return block ``index`` of the body ``seed``."""
    return hashlib.shake_128(b"%d:%d" % (seed, index)).digest(BLOCK_SIZE)


def blocks(seed: int, size: int) -> Iterator[bytes]:
    """Yield the first ``size`` bytes of the body ``seed``, a block at a time."""
    for index in range(size // BLOCK_SIZE):
        yield block(seed, index)
    if size % BLOCK_SIZE:
        yield block(seed, size // BLOCK_SIZE)[: size % BLOCK_SIZE]


def body(seed: int, size: int) -> bytes:
    """Return the first ``size`` bytes of the body ``seed``."""
    return b"".join(blocks(seed, size))


class Verifier:
    """Checks a body of ``size`` bytes while it arrives, by the hash of each block.

    Attributes:
        verified: how many bytes have been checked and found right.
    """

    def __init__(self, seed: int, size: int) -> None:
        self._seed = seed
        self._size = size
        self._received = bytearray()
        self._next_block = 0
        self.verified = 0

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the body.

        Raises:
            WrongBodyError: a block differs, or there are more bytes than the body has.
        """
        self._received += chunk
        while len(self._received) >= BLOCK_SIZE:
            self._check(bytes(self._received[:BLOCK_SIZE]))
            del self._received[:BLOCK_SIZE]
        if self.verified + len(self._received) > self._size:
            raise WrongBodyError(
                f"body {self._seed} should end after {self._size} bytes, but more arrived"
            )

    def finish(self) -> None:
        """Check what is left when the body has ended.

        Raises:
            WrongBodyError: the last block differs, or the body is too short.
        """
        if self._received:
            self._check(bytes(self._received))
            self._received.clear()
        if self.verified != self._size:
            raise WrongBodyError(
                f"body {self._seed} ended after {self.verified} of {self._size} bytes"
            )

    def _check(self, received: bytes) -> None:
        expected = block(self._seed, self._next_block)[: self._size - self.verified]
        if hashlib.sha256(received).digest() != hashlib.sha256(expected).digest():
            raise WrongBodyError(
                f"body {self._seed} is wrong between byte {self.verified} and "
                f"{self.verified + len(received)}"
            )
        self._next_block += 1
        self.verified += len(received)
