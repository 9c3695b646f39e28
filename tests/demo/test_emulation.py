from __future__ import annotations

import asyncio
import random

import pytest
from quicferry_lab.emulation import EmulatedNetwork, PathSpec, Shaper

from quicferry.transport import NetworkAddress

SERVER: NetworkAddress = ("127.0.0.1", 4433)
MOVED: NetworkAddress = ("127.0.0.2", 4433)


def shaper(spec: PathSpec) -> Shaper:
    return Shaper(spec, random.Random(1))


def test_delay_is_half_the_round_trip_time() -> None:
    assert shaper(PathSpec(rtt_ms=18)).arrival(1200, 5.0) == pytest.approx(5.009)


def test_rate_limits_a_long_run() -> None:
    path = shaper(PathSpec(rate_mbit=8, queue_ms=10_000))  # a byte in a microsecond
    arrivals = [path.arrival(1000, 0.0) for _ in range(1000)]
    assert arrivals[0] == 0.0  # the bucket was full
    assert arrivals[-1] == pytest.approx(1.0 - 0.003)


def test_bucket_does_not_save_more_than_it_holds() -> None:
    path = shaper(PathSpec(rate_mbit=8, queue_ms=10_000))
    for now in (0.0, 100.0):
        arrivals = [path.arrival(1000, now) for _ in range(10)]
        assert arrivals[-1] == pytest.approx(now + 0.007)


def test_queue_drops_its_tail() -> None:
    path = shaper(PathSpec(rate_mbit=8, queue_ms=20.5))
    arrivals = [path.arrival(1000, 0.0) for _ in range(100)]
    delivered = [arrival for arrival in arrivals if arrival is not None]
    assert len(delivered) == 23  # 20 ms of queue and 3 ms of bucket
    assert max(delivered) == pytest.approx(0.020)
    assert path.arrival(1000, 0.010) is not None


@pytest.mark.parametrize(("rtt_ms", "longest_wait"), [(50, 0.050), (2, 0.024)])
def test_queue_holds_a_round_trip_time_and_at_least_twenty_datagrams(
    rtt_ms: float, longest_wait: float
) -> None:
    path = shaper(PathSpec(rate_mbit=8, rtt_ms=rtt_ms))
    arrivals = [path.arrival(100, 0.0) for _ in range(2000)]
    latest = max(arrival for arrival in arrivals if arrival is not None)
    assert latest - rtt_ms / 2000 == pytest.approx(longest_wait, abs=0.0002)


def test_loss_is_seeded_and_about_right() -> None:
    spec = PathSpec(loss_percent=10)
    one, same = shaper(spec), shaper(spec)
    fates = [one.arrival(1200, 0.0) for _ in range(2000)]
    assert fates == [same.arrival(1200, 0.0) for _ in range(2000)]
    assert 120 <= fates.count(None) <= 280


def test_jitter_keeps_the_order() -> None:
    path = shaper(PathSpec(rtt_ms=20, jitter_ms=30))
    arrivals = [path.arrival(1200, number / 1000) or 0.0 for number in range(200)]
    assert arrivals == sorted(arrivals)
    assert 0.010 <= arrivals[0] <= 0.040


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rtt_ms", -1),
        ("queue_ms", -1),
        ("jitter_ms", -1),
        ("rate_mbit", 0),
        ("loss_percent", 101),
        ("loss_percent", -1),
    ],
)
def test_impossible_paths_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match="path"):
        PathSpec(**{field: value})  # type: ignore[arg-type]  # mypy cannot tell which field


class Ends:
    """The socket and the connection; notes what arrives at both, and when."""

    def __init__(self, expected: int = 0) -> None:
        self.sent: list[tuple[bytes, NetworkAddress, float]] = []
        self.delivered: list[tuple[bytes, NetworkAddress, float]] = []
        self._expected = expected
        self.complete = asyncio.Event()

    def send(self, data: bytes, addr: NetworkAddress) -> None:
        self._note(self.sent, data, addr)

    def deliver(self, data: bytes, addr: NetworkAddress) -> None:
        self._note(self.delivered, data, addr)

    def _note(
        self, where: list[tuple[bytes, NetworkAddress, float]], data: bytes, addr: NetworkAddress
    ) -> None:
        where.append((data, addr, asyncio.get_running_loop().time()))
        if len(self.sent) + len(self.delivered) == self._expected:
            self.complete.set()


async def test_paths_differ_by_server_address_and_work_both_ways() -> None:
    ends = Ends(expected=3)
    network = EmulatedNetwork({SERVER: PathSpec(rtt_ms=40), MOVED: PathSpec(rtt_ms=20)})
    link = network.wrap(ends)
    started = asyncio.get_running_loop().time()
    link.send(b"to the source", SERVER)
    link.deliver(b"from the source", SERVER)
    link.send(b"to the destination", MOVED)
    async with asyncio.timeout(5):
        await ends.complete.wait()
    assert [(data, addr) for data, addr, _ in ends.sent] == [
        (b"to the destination", MOVED),
        (b"to the source", SERVER),
    ]
    assert [(data, addr) for data, addr, _ in ends.delivered] == [(b"from the source", SERVER)]
    earliest = [at - started for _, _, at in (*ends.sent, *ends.delivered)]
    assert earliest[0] >= 0.009
    assert min(earliest[1:]) >= 0.019


async def test_order_is_kept_and_nothing_is_lost_on_a_delayed_path() -> None:
    ends = Ends(expected=300)
    link = EmulatedNetwork({SERVER: PathSpec(rtt_ms=10, rate_mbit=50)}).wrap(ends)
    for number in range(300):
        link.send(b"%03d" % number, SERVER)
    async with asyncio.timeout(5):
        await ends.complete.wait()
    assert [data for data, _, _ in ends.sent] == [b"%03d" % number for number in range(300)]


async def test_a_path_without_any_effect_adds_no_delay() -> None:
    ends = Ends()
    link = EmulatedNetwork({}).wrap(ends)
    link.send(b"x", SERVER)
    assert ends.sent[0][0] == b"x"


async def test_an_error_at_the_end_does_not_stop_the_path() -> None:
    class Broken(Ends):
        def send(self, data: bytes, addr: NetworkAddress) -> None:
            if data == b"bad":
                raise RuntimeError("bad")
            super().send(data, addr)

    ends = Broken(expected=1)
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    link = EmulatedNetwork({SERVER: PathSpec(rtt_ms=2)}).wrap(ends)
    link.send(b"bad", SERVER)
    link.send(b"good", SERVER)
    async with asyncio.timeout(5):
        await ends.complete.wait()
    assert len(reported) == 1
