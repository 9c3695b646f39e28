"""A relocation under way, as it is seen by who has asked for it.

`quicferry migrate` and the management command ``handover`` tell the same events and the same report
in the end. Here they become the instants and the phases of a `Relocation`.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from quicferry.protocol import QuicferryError
from quicferry.relocation import Outcome, Step
from quicferry_lab.evaluation.result import Relocation
from quicferry_lab.patience import patient

_MOVE_LIMIT = patient(90.0)
"""Seconds until a relocation is ready, committed, or has failed."""
FOLLOW_LIMIT = patient(70.0)
"""Seconds that the clients have to follow: a search through a pool with losses took 26, and it may
begin with the next request only."""


class MoveError(QuicferryError):
    """The server was not moved."""


class Move(ABC):
    """One relocation of the server.

    Args:
        number: Which one of the run, from 1.

    Attributes:
        relocation: What is known of it; its instants are those of the monotonic clock.
        problems: What was not as it should be, in words.
    """

    def __init__(self, number: int) -> None:
        self.relocation = Relocation(number)
        self.problems: list[str] = []
        self._report: dict[str, Any] | None = None
        self._failure: BaseException | None = None
        self._begun: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._waits_for: str | None = None
        self._happened = asyncio.Event()
        self._has_begun = False

    async def get_ready(self) -> None:
        """Begin, and wait until the server is ready to fall silent; it goes on meanwhile.

        Raises:
            MoveError: That has failed.
        """
        await self._begin_held()
        self._has_begun = True
        await self._until(lambda: self._waits_for == self._held.value)

    async def go(self) -> None:
        """Let the server move, and wait until it can speak at its new address.

        Raises:
            MoveError: It was not moved.
        """
        if self._has_begun:
            await self._release()
        else:
            await self._begin_at_once()
        await self._until(lambda: Step.COMMIT.value in self._ended)

    async def end(self) -> None:
        """Wait for the end of it, and note what it was.

        Raises:
            MoveError: It was not moved.
        """
        await self._until(lambda: self._report is not None)
        report = self._report
        assert report is not None, "it was waited for"
        self.relocation = self._described(report)
        self.problems += _problems(report)

    # What a technique does

    @property
    @abstractmethod
    def _held(self) -> Step:
        """The step that waits for `go`."""

    @abstractmethod
    async def _begin_at_once(self) -> None: ...

    @abstractmethod
    async def _begin_held(self) -> None: ...

    @abstractmethod
    async def _proceed(self) -> None:
        """Let the step that waits begin."""

    @abstractmethod
    async def _release(self) -> None:
        """Let the step that waits begin, and all that follow."""

    # What is told

    async def _heard(self, event: dict[str, Any]) -> None:
        now = time.monotonic()
        match event["event"]:
            case "StepBegun":
                self._begun.setdefault(event["step"], now)
            case "StepEnded":
                self._ended[event["step"]] = now
            case "StepWaits":
                self._waits_for = event["step"]
                if self._waits_for != self._held.value:
                    self._begun[event["step"]] = now  # it does as soon as it is let
                    await self._proceed()
        self._happened.set()

    def _reported(self, report: dict[str, Any]) -> None:
        self._report = report
        self._happened.set()

    def _failed(self, error: BaseException) -> None:
        self._failure = error
        self._happened.set()

    async def _until(self, is_so: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(_MOVE_LIMIT):
                while not is_so():
                    if self._report is not None:
                        if self._report["outcome"] == Outcome.COMMITTED.value:
                            return  # the report has overtaken the events
                        raise MoveError(_reason(self._report))
                    if self._failure is not None:
                        raise MoveError(str(self._failure)) from self._failure
                    self._happened.clear()
                    await self._happened.wait()
        except TimeoutError:
            step = max(self._begun, key=self._begun.__getitem__, default="the first step")
            raise MoveError(
                f"the relocation did not get on within {_MOVE_LIMIT:g} s (in {step})"
            ) from None
        if self._report is not None and self._report["outcome"] != Outcome.COMMITTED.value:
            raise MoveError(_reason(self._report))

    def _described(self, report: dict[str, Any]) -> Relocation:
        phases: dict[str, float] = report["phases"]
        imminent_at = self._begun.get(Step.IMMINENT.value)
        if not self._has_begun:  # no step had to wait, so the report knows exactly
            before = (Step.OFFER.value, Step.PRE_COPY.value)
            imminent_at = report["started_at"] + sum(phases.get(step, 0.0) for step in before)
        restored_at: float = report["owned_at"]
        follow = self._ended.get(Step.FOLLOW.value, time.monotonic())
        return replace(
            self.relocation,
            imminent_at=imminent_at,
            ready_at=None if imminent_at is None else imminent_at + phases[Step.IMMINENT.value],
            silent_at=restored_at - report["silence"],
            restored_at=restored_at,
            completed_at=follow if report["followed"] and not report["lost"] else None,
            pre_dump=phases.get(Step.PRE_COPY.value),
            dump=phases[Step.FREEZE.value],
            transfer=phases[Step.TRANSFER.value],
            restore=phases[Step.THAW.value] + phases[Step.SWITCH.value],
            carried=report["bytes"],
        )


def since(relocation: Relocation, began_at: float) -> Relocation:
    """Return a relocation with its instants counted from another one.

    Args:
        relocation: Its instants are those of the monotonic clock.
        began_at: The other one, likewise.
    """
    names = ("imminent_at", "ready_at", "silent_at", "restored_at", "completed_at")
    instants = {name: getattr(relocation, name) for name in names}
    return replace(
        relocation,
        **{name: at - began_at for name, at in instants.items() if at is not None},
    )


def _reason(report: dict[str, Any]) -> str:
    where = f" (in {report['failed_phase']})" if report["failed_phase"] else ""
    return f"the server was not moved, {report['outcome']}: {report['reason']}{where}"


def _problems(report: dict[str, Any]) -> list[str]:
    found = []
    if report["lost"]:
        found.append(f"{len(report['lost'])} connections ended before their clients had followed")
    if not report["followed"]:
        found.append(f"the server has not heard of {len(report['pending'])} clients since")
    return found
