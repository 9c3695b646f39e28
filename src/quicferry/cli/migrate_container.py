"""The part of `quicferry migrate` that moves a server with its container."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from quicferry.cli.enter import Enter
from quicferry.cli.output import say_aside
from quicferry.protocol import Address, protocol_from_name
from quicferry.relocation import (
    Compression,
    ContainerPlan,
    ContainerRelocation,
    EngineError,
    Identity,
    Step,
    StepWaits,
    Technique,
    Transferred,
    engine_class,
    find_server,
)
from quicferry.server import RelocationEvent, ServerEvent, Unready
from quicferry.server.commands import describe_event

Tell = Callable[[dict[str, Any]], None]
"""Tells what happens, in values that JSON can express."""


@dataclass(frozen=True)
class Choices:
    """What the options of `quicferry migrate` say about a container.

    Attributes:
        technique: How it is moved.
        engine: The name of its engine.
        container: Its name.
        compression: How images are compressed.
        lease: Seconds from the freeze within which it has to be committed.
        identity: The directory with this host's identity.
        step: Whether each step waits for Enter.
    """

    technique: Technique
    engine: str
    container: str
    compression: Compression
    lease: float
    identity: Path
    step: bool


async def migrate_container(
    choices: Choices,
    agent: tuple[str, int],
    address: Callable[[Address], Address],
    fields: dict[str, Any],
    tell: Tell,
) -> dict[str, Any]:
    """Move a server with its container, and return the report.

    Args:
        choices: What the options say about it.
        agent: The host and the TCP port of the agent.
        address: Returns where the server goes, of where it is.
        fields: The options that all techniques have.
        tell: Is told what happens.

    Raises:
        EngineError: If this is not root, or the engine has no such container that runs.
    """
    if os.geteuid() != 0:
        raise EngineError("only root can move a container; use sudo")
    engine = engine_class(choices.engine)()
    container = await engine.source(choices.container)
    source = await find_server(container)
    protocol = fields["protocol"]
    plan = ContainerPlan(
        *agent,
        address(source),
        protocol=None if protocol == "auto" else protocol_from_name(protocol),
        deadline=fields["deadline"],
        unready=Unready(fields["unready"]),
        follow=fields["timeout"],
        peer=fields["peer"],
        technique=choices.technique,
        compression=choices.compression,
        lease=choices.lease,
    )
    with _Display(tell) as display:
        pace = _Pace(display.event) if choices.step else None
        relocation = ContainerRelocation(
            container,
            engine,
            source,
            plan,
            Identity.load(choices.identity),
            tell=display.event,
            gate=None if pace is None else pace.gate,
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, _abort, relocation)
        if pace is not None:
            pace.abort = relocation.abort
        try:
            return (await relocation.run()).encode()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


def _abort(relocation: ContainerRelocation) -> None:
    if not relocation.abort("it was aborted"):
        say_aside("the relocation cannot be aborted any more")


class _Pace:
    """Lets each step begin when Enter is pressed; the end of the input goes back, or else on."""

    def __init__(self, tell: Callable[[RelocationEvent], None]) -> None:
        self._tell = tell
        self._enter = Enter()
        self._goes_on = False
        self.abort: Callable[[str], bool] = lambda reason: False

    async def gate(self, step: Step) -> None:
        """Wait for Enter."""
        if self._goes_on:
            return
        self._tell(StepWaits(step))
        if await self._enter.pressed():
            return
        if self.abort("it was aborted"):
            say_aside(f"standard input has ended, so it goes back before {step.value}")
            await asyncio.Event().wait()  # until it is cancelled
        else:
            say_aside("standard input has ended, and it is too late to go back, so it goes on")
            self._goes_on = True


class _Display:
    """Tells what happens, with a bar for what is sent where a person looks on."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._progress = Progress(
            TextColumn("sending  "),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, visible=False)

    def __enter__(self) -> _Display:
        if sys.stderr.isatty():
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if sys.stderr.isatty():
            self._progress.stop()

    def event(self, event: RelocationEvent) -> None:
        """Tell of an event."""
        if isinstance(event, Transferred):
            total = max(event.total, event.bytes)
            self._progress.update(self._task, completed=event.bytes, total=total, visible=True)
        described = describe_event(ServerEvent(None, event))
        del described["connection"]
        self._tell(described)
