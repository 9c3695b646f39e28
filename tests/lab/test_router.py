"""The router's shaping, in virtual time: no interfaces, no clock."""

from __future__ import annotations

import pytest
from quicferry_lab.emulation import PathSpec
from quicferry_lab.hosts.router import Direction, Schedule
from quicferry_lab.hosts.tun import HEADER_BYTES

OUT = 7
FULL = 1500


def packet(number: int, size: int = FULL, version: int = 4) -> bytes:
    body = bytes([version << 4]) + number.to_bytes(8, "big")
    return bytes(HEADER_BYTES) + body.ljust(size, b"\0")


def number_of(data: bytes) -> int:
    return int.from_bytes(data[HEADER_BYTES + 1 : HEADER_BYTES + 9], "big")


def arrivals(schedule: Schedule, until: float = 100.0) -> list[tuple[float, int]]:
    """Return when each packet that is under way arrives, as the router would deliver it."""
    now, found = 0.0, []
    while (patience := schedule.patience(now)) is not None and now <= until:
        now += patience
        found += [(now, number_of(data)) for _, data in schedule.due(now)]
    return found


def numbers(schedule: Schedule) -> list[int]:
    return [number for _, number in arrivals(schedule)]


def test_each_direction_delays_by_half_of_the_round_trip_time() -> None:
    schedule = Schedule()
    direction = Direction("there", PathSpec(rtt_ms=122), OUT)
    schedule.send(direction, packet(1), 1.0)
    assert list(schedule.due(1.0609)) == []
    assert list(schedule.due(1.061)) == [(OUT, packet(1))]


def test_patience_is_the_time_to_the_next_delivery() -> None:
    schedule = Schedule()
    assert schedule.patience(0.0) is None
    schedule.send(Direction("there", PathSpec(rtt_ms=122), OUT), packet(1), 0.0)
    schedule.send(Direction("there", PathSpec(rtt_ms=18), OUT), packet(2), 0.0)
    assert schedule.patience(0.005) == pytest.approx(0.004)
    assert schedule.patience(1.0) == 0.0


def test_links_do_not_wait_for_each_other() -> None:
    schedule = Schedule()
    schedule.send(Direction("slow", PathSpec(rtt_ms=122), OUT), packet(1), 0.0)
    schedule.send(Direction("fast", PathSpec(rtt_ms=18), OUT), packet(2), 0.001)
    assert numbers(schedule) == [2, 1]


def test_the_rate_is_that_of_whole_packets_without_the_header() -> None:
    schedule = Schedule()
    direction = Direction("there", PathSpec(rate_mbit=12, queue_ms=1000), OUT)
    for number in range(100):
        schedule.send(direction, packet(number), 0.0)
    found = arrivals(schedule)
    assert len(found) == 100
    assert found[-1][0] == pytest.approx(98 * 0.001)  # the bucket holds two


def test_a_packet_that_finds_the_queue_full_is_dropped() -> None:
    schedule = Schedule()
    direction = Direction("there", PathSpec(rate_mbit=12, queue_ms=20), OUT)
    for number in range(100):
        schedule.send(direction, packet(number), 0.0)
    assert numbers(schedule) == list(range(22))


@pytest.mark.parametrize("seed", [1, 2])
def test_the_same_packets_are_lost_with_the_same_seed(seed: int) -> None:
    def received(name: str, seed: int, size: int) -> list[int]:
        schedule = Schedule()
        direction = Direction(name, PathSpec(loss_percent=10, seed=seed), OUT)
        for number in range(1000):
            schedule.send(direction, packet(number, size), 0.0)
        return numbers(schedule)

    first = received("there", seed, FULL)
    assert 850 < len(first) < 950
    assert received("there", seed, 100) == first
    assert received("back", seed, FULL) != first
    assert received("there", seed + 1, FULL) != first


def test_what_is_not_ipv4_is_no_matter_of_chance() -> None:
    schedule = Schedule()
    path = PathSpec(loss_percent=50, seed=3)
    plain, disturbed = Direction("there", path, OUT), Direction("there", path, OUT)
    for number in range(100):
        schedule.send(plain, packet(number), 0.0)
    expected = numbers(schedule)
    for number in range(100):
        schedule.send(disturbed, packet(number, version=6), 0.0)
        schedule.send(disturbed, packet(number), 0.0)
    assert numbers(schedule) == expected


def test_a_cut_loses_what_is_sent_and_what_is_under_way() -> None:
    schedule = Schedule()
    direction = Direction("there", PathSpec(rtt_ms=18), OUT)
    schedule.send(direction, packet(1), 0.0)
    direction.is_cut = True
    schedule.send(direction, packet(2), 0.001)
    assert list(schedule.due(1.0)) == []
    direction.is_cut = False
    schedule.send(direction, packet(3), 1.0)
    assert numbers(schedule) == [3]


def test_a_changed_path_holds_for_packets_sent_from_now_on() -> None:
    schedule = Schedule()
    direction = Direction("there", PathSpec(rtt_ms=122), OUT)
    schedule.send(direction, packet(1), 0.0)
    direction.shape(PathSpec(rtt_ms=18))
    schedule.send(direction, packet(2), 0.0)
    (second_at, second), (first_at, first) = arrivals(schedule)
    assert (second, first) == (2, 1)
    assert second_at == pytest.approx(0.009)
    assert first_at == pytest.approx(0.061)
