"""Which address is tried when, and which is used, in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from aioquic.quic.packet import QuicErrorCode
from virtual_time import run_virtually

from quicferry.client.race import first_connected, in_turn
from quicferry.io import BindError, ConnectFailed
from quicferry.protocol import Address
from quicferry.transport import NetworkAddress

NEVER = 3600.0
REFUSED = QuicErrorCode.CONNECTION_REFUSED


class Try:
    """A try to connect that ends as a test says."""

    def __init__(self, seconds: float, error: int | None) -> None:
        self.seconds = seconds
        self.error = error
        self.is_given_up = False

    async def wait_connected(self) -> None:
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise ConnectFailed("server", self.error, f"after {self.seconds:g} s")

    def give_up(self) -> None:
        self.is_given_up = True


class Tries:
    """Several, one for each address, with the times when they began."""

    def __init__(self, *tries: Try | None) -> None:
        self.tries = tries
        self.began: list[float] = []

    def begin(self, address: NetworkAddress) -> Try:
        self.began.append(round(asyncio.get_running_loop().time(), 6))
        one = self.tries[int(address[1])]
        if one is None:
            raise BindError(Address.parse("[::]:0"), OSError(97, "no such family"))
        return one

    async def connected(self) -> tuple[Try, float]:
        addresses = [("192.0.2.1", port) for port in range(len(self.tries))]
        chosen = await first_connected(addresses, self.begin)
        return chosen, round(asyncio.get_running_loop().time(), 6)


@pytest.mark.parametrize(
    ("tries", "chosen", "began", "at"),
    [
        ([Try(0.1, None), Try(0.1, None)], 0, [0], 0.1),
        ([Try(NEVER, None), Try(0.1, None)], 1, [0, 0.25], 0.35),
        ([Try(0.3, None), Try(NEVER, None)], 0, [0, 0.25], 0.3),
        ([Try(0.01, REFUSED), Try(0.1, None)], 1, [0, 0.01], 0.11),
        ([None, Try(0.1, None)], 1, [0, 0], 0.1),
        ([Try(NEVER, None)] * 3 + [Try(0.1, None)], 3, [0, 0.25, 0.5, 0.75], 0.85),
        ([Try(0.3, REFUSED), Try(0.1, REFUSED), Try(0.2, None)], 2, [0, 0.25, 0.3], 0.5),
        ([Try(NEVER, None), Try(0.1, 0x12A), Try(0.1, None)], 2, [0, 0.25, 0.35], 0.45),
    ],
)
def test_the_first_that_answers_is_used(
    tries: list[Try | None], chosen: int, began: list[float], at: float
) -> None:
    all_of_them = Tries(*tries)
    assert run_virtually(all_of_them.connected()) == (tries[chosen], at)
    assert all_of_them.began == began
    begun = [one for one in tries[: len(began)] if one is not None]
    assert [one.is_given_up for one in begun] == [one is not tries[chosen] for one in begun]


@pytest.mark.parametrize(
    ("tries", "text"),
    [
        ([Try(0.1, REFUSED), Try(0.2, REFUSED)], "after 0.1 s"),
        ([Try(0.1, REFUSED), Try(0.2, 0x12A)], "after 0.2 s"),
        ([Try(0.1, 0x12A), Try(0.2, REFUSED)], "after 0.1 s"),
        ([None, Try(5, 1)], "after 5 s"),
        ([None, Try(5, REFUSED), Try(1, REFUSED)], "after 1 s"),
        ([None, None], "no such family"),
    ],
)
def test_what_is_wrong_with_all(tries: list[Try | None], text: str) -> None:
    with pytest.raises((ConnectFailed, BindError), match=text):
        run_virtually(Tries(*tries).connected())


def test_all_are_given_up_when_nobody_waits_any_more() -> None:
    tries = [Try(NEVER, None) for _ in range(3)]

    async def run() -> None:
        async with asyncio.timeout(0.4):
            await Tries(*tries).connected()

    with pytest.raises(TimeoutError):
        run_virtually(run())
    assert [one.is_given_up for one in tries] == [True, True, False]


def test_families_take_turns() -> None:
    six = [(f"2001:db8::{n}", 443, 0, 0) for n in range(3)]
    four = [(f"192.0.2.{n}", 443) for n in range(20)]
    assert in_turn([*six, *four[:1]]) == [six[0], four[0], six[1], six[2]]
    assert in_turn([*four[:2], *six[:1], four[0]]) == [four[0], six[0], four[1]]
    assert in_turn(four) == four[:16]
