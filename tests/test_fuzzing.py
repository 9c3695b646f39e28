"""What fuzzing has found stays found, and what finds it would still find it."""

from __future__ import annotations

import logging
import tarfile
import time
import zlib
from collections.abc import Callable
from typing import Any

import pytest
from fuzzing import harness
from fuzzing.containers import archive, core
from fuzzing.harness import STEP_LIMIT, FindingError, Steps, Target, check, explore
from fuzzing.targets import TARGETS
from hypothesis import strategies as st

from quicferry.relocation.container.images import Compression

ARRAYS = b"\xdd\x00\x60\x00\x00" + b"\x90" * (6 << 20)
"""Empty arrays, six million of them."""

FOUND: list[tuple[str, Any]] = [
    ("images", (Compression.NONE, [("a\0b", b"")])),
    ("archives", archive([("config.dump", tarfile.REGTYPE, b"[" * 100_000)])),
    ("archives", archive([("config.dump", tarfile.REGTYPE, b" " * (32 << 20))])),
    ("criu-images", core({9: b"\x01" * 30_000}, {}, {})),
    ("messages", b"\x01" + ARRAYS),
    ("agent", [(1 + len(ARRAYS)).to_bytes(4, "big") + b"\x01" + ARRAYS]),
    ("snapshots", b"QFCS\x00\x02" + zlib.crc32(ARRAYS).to_bytes(4, "big") + ARRAYS),
]


@pytest.mark.parametrize(("name", "value"), FOUND, ids=[name for name, _ in FOUND])
def test_what_was_found(name: str, value: Any) -> None:
    check(TARGETS[name], value)


def _slow(value: int) -> None:
    until = time.thread_time() + 2 * STEP_LIMIT
    while value == 77 and time.thread_time() < until:
        pass


def _endless(value: int) -> None:
    while value == 77:
        pass


def _hungry(value: int) -> None:
    [bytes(1 << 20) for _ in range(40 if value == 77 else 1)]


def _loud(value: int) -> None:
    if value == 77:
        logging.getLogger("quicferry.server").error("this fails")


def _broken(value: int) -> None:
    assert value != 77, value


@pytest.mark.parametrize(
    ("does", "error", "text"),
    [
        (_slow, FindingError, "a step takes 2"),
        (_endless, FindingError, "a step takes more than"),
        (_hungry, FindingError, "MB"),
        (_loud, FindingError, "this fails"),
        (_broken, AssertionError, "77"),
    ],
)
def test_a_step_that_is_wrong_is_found(
    does: Callable[[int], None],
    error: type[Exception],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(harness, "HANG_LIMIT", 0.5)

    def play(value: int) -> Steps:
        yield
        does(value)
        yield

    numbers = Target("numbers", st.sampled_from([1, 77]), play)
    check(numbers, 1)
    with pytest.raises(error, match=text):
        explore(numbers, 1, 20)


def test_slow_preparation_is_nobodys_fault() -> None:
    def play(value: int) -> Steps:
        for _ in range(30):
            sum(range(1_000_000))
        yield
        yield

    check(Target("prepared", st.just(1), play), 1)
