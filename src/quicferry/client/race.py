"""Which of a server's addresses is used: the first that answers (Happy Eyeballs, RFC 8305).

Addresses of both families are tried by turns, each a moment after the one before it, or at once
when that has failed. What loses is given up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Protocol, TypeVar

from aioquic.quic.packet import QuicErrorCode

from quicferry.io import ConnectionLost
from quicferry.protocol import QuicferryError
from quicferry.transport import NetworkAddress

ATTEMPT_DELAY = 0.25
"""Seconds that an address has for itself (RFC 8305 5)."""

MOST_ADDRESSES = 16
"""Addresses of one name that are tried; a name may have any number of them."""


class Attempt(Protocol):
    """One try to connect."""

    async def wait_connected(self) -> None:
        """Wait until it succeeds, or raise `ConnectFailed`."""

    def give_up(self) -> None:
        """End it, at once."""


AttemptT = TypeVar("AttemptT", bound=Attempt)


def in_turn(addresses: Sequence[NetworkAddress]) -> list[NetworkAddress]:
    """Return the addresses of a name by families in turn, each once (RFC 8305 4).

    Args:
        addresses: In the order of the system's preference (RFC 6724).
    """
    unique = list(dict.fromkeys(addresses))
    preferred = [each for each in unique if len(each) == len(unique[0])]
    others = [each for each in unique if len(each) != len(unique[0])]
    pairs = zip_longest(preferred, others)
    return [each for pair in pairs for each in pair if each is not None][:MOST_ADDRESSES]


async def first_connected(
    addresses: Sequence[NetworkAddress], begin: Callable[[NetworkAddress], AttemptT]
) -> AttemptT:
    """Connect to the first of these addresses that answers.

    Args:
        addresses: At least one, in their order.
        begin: Begins to connect to an address.

    Raises:
        QuicferryError: If there is none: what is wrong where somebody has answered, or else
            where nobody has.
    """
    if len(addresses) == 1:
        return await _connected(begin(addresses[0]))
    waiting = list(addresses)
    running: dict[asyncio.Task[None], AttemptT] = {}
    failures: list[QuicferryError] = []
    try:
        while waiting or running:
            if waiting:
                try:
                    attempt = begin(waiting.pop(0))
                except QuicferryError as exc:
                    failures.append(exc)
                    continue
                running[asyncio.create_task(attempt.wait_connected())] = attempt
            done, _ = await asyncio.wait(
                running,
                timeout=ATTEMPT_DELAY if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                attempt = running[task]
                try:
                    task.result()
                except QuicferryError as exc:
                    failures.append(exc)
                    del running[task]
                    attempt.give_up()
                else:
                    del running[task]
                    return attempt
    finally:
        for task, attempt in running.items():
            if not task.cancel() and not task.cancelled():
                task.exception()  # it is of no interest any more
            attempt.give_up()
    raise min(failures, key=_says_little)


async def _connected(attempt: AttemptT) -> AttemptT:
    # No task of its own: each turn of a busy event loop is as long as what else is to be done.
    try:
        await attempt.wait_connected()
    except BaseException:
        attempt.give_up()
        raise
    return attempt


def _says_little(failure: QuicferryError) -> int:
    """Rank what may be wrong: at the server, on the way there, or here."""
    if not isinstance(failure, ConnectionLost):
        return 2
    return int(failure.error_code == QuicErrorCode.CONNECTION_REFUSED)
