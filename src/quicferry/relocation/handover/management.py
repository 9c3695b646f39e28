"""Management commands of a server that can be handed over.

They stand beside those of `quicferry.server.commands`: ``handover`` does a handover and answers
with its report; ``proceed`` lets one that was asked to wait begin with its next step. ``abort``
gives up a handover too, and ``status`` tells of the current or the last one, so that an
orchestrator which has lost its connection finds out what has become of it.
"""

from __future__ import annotations

import asyncio
import enum
from pathlib import Path
from typing import Any

from quicferry.protocol import Address, MigrationErrorCode
from quicferry.server import ManagementError, RelocationError, Server, Unready, fields
from quicferry.server.commands import (
    COMMANDS,
    Command,
    Commands,
    Fields,
    who_cannot_be_told,
)
from quicferry.server.fields import REQUIRED, Field, Json

from ..container.suspension_commands import SuspensionCommands
from ..link.identity import Identity
from ..steps.report import Outcome, Step, StepWaits
from .technique import Handover, HandoverPlan, Running

NOT_WAITING = "NOT_WAITING"
TOO_LATE = "TOO_LATE"


class Pace(enum.Enum):
    """When the steps of a handover begin."""

    AT_ONCE = "at-once"
    STEP_BY_STEP = "step-by-step"
    """Each when the command ``proceed`` is given. If the connection on which the command
    ``handover`` came ends, it is aborted, or goes on at once if that is too late."""


class HandoverCommands:
    """The management commands of one server.

    Args:
        server: The server. It is closed a short time after it was handed over.
        application: What runs on it, by the name that agents know it by.
    """

    def __init__(self, server: Server, application: str) -> None:
        self._server = server
        self._application = application
        self._handover: Handover | None = None
        self._report: dict[str, Json] | None = None
        self._pace = Pace.AT_ONCE
        self._waits_for: Step | None = None
        self._proceed = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None

    @property
    def commands(self) -> Commands:
        """All commands of the server, for `quicferry.server.ManagementServer`."""
        return {
            **COMMANDS,
            **SuspensionCommands(self._server).commands,
            "handover": Command(
                {
                    "agent": Field(_host_and_port, REQUIRED),
                    "identity": Field(fields.text, REQUIRED),
                    "address": Field(fields.address, REQUIRED),
                    "protocol": Field(fields.protocol),
                    "deadline": Field(fields.seconds, HandoverPlan.deadline),
                    "unready": Field(fields.choice(Unready), HandoverPlan.unready),
                    "drain": Field(fields.patience, HandoverPlan.drain),
                    "running": Field(fields.choice(Running), HandoverPlan.running),
                    "timeout": Field(fields.seconds, HandoverPlan.follow),
                    "peer": Field(fields.text),
                    "pace": Field(fields.choice(Pace), Pace.AT_ONCE),
                },
                self._hand_over,
                self._forsaken,
            ),
            "proceed": Command(
                {"pace": Field(fields.choice(Pace), Pace.STEP_BY_STEP)}, self._go_on
            ),
            "abort": Command({}, self._abort),
            "status": Command({}, self._status),
        }

    async def _hand_over(self, server: Server, given: Fields) -> dict[str, Json]:
        if self._handover is not None:
            raise RelocationError(MigrationErrorCode.MIGRATION_ALREADY_IN_PROGRESS)
        host, port = given["agent"]
        plan = HandoverPlan(
            host,
            port,
            given["address"],
            protocol=given["protocol"],
            deadline=given["deadline"],
            unready=given["unready"],
            drain=given["drain"],
            running=given["running"],
            follow=given["timeout"],
            peer=given["peer"],
        )
        handover = Handover(
            server,
            self._application,
            plan,
            Identity.load(Path(given["identity"])),
            tell=server.publish,
            gate=self._gate,
        )
        self._handover, self._pace = handover, given["pace"]
        try:
            report = await handover.run()
        finally:
            self._handover = None
        self._report = report.encode()
        if report.outcome is Outcome.COMMITTED:
            self._ending = asyncio.create_task(handover.finish())
        return self._report

    async def _gate(self, step: Step) -> None:
        if self._pace is Pace.AT_ONCE:
            return
        self._proceed.clear()
        self._waits_for = step
        self._server.publish(StepWaits(step))
        try:
            await self._proceed.wait()
        finally:
            self._waits_for = None

    async def _go_on(self, server: Server, given: Fields) -> dict[str, Json]:
        step = self._waits_for
        if step is None:
            raise ManagementError(NOT_WAITING, "no handover waits for that; see status")
        self._pace = given["pace"]
        self._proceed.set()
        return {"phase": step.value}

    def _forsaken(self) -> None:
        """Wait no longer for who was to let the steps begin."""
        handover = self._handover
        if handover is None or self._pace is Pace.AT_ONCE:
            return
        if not handover.abort("who asked for it step by step has gone away"):
            self._pace = Pace.AT_ONCE
            self._proceed.set()

    async def _abort(self, server: Server, given: Fields) -> dict[str, Json]:
        if self._handover is None:
            await server.abort()
        elif not self._handover.abort("it was aborted"):
            raise ManagementError(TOO_LATE, "the handover cannot be aborted any more; see status")
        return who_cannot_be_told(server)

    async def _status(self, server: Server, given: Fields) -> dict[str, Json]:
        handover, waits_for = self._handover, self._waits_for
        under_way: dict[str, Any] | None = None
        if handover is not None:
            under_way = {
                "phase": None if handover.step is None else handover.step.value,
                "waits_for": None if waits_for is None else waits_for.value,
                "state": handover.state,
            }
        return {**server.status(), "handover": under_way, "last_handover": self._report}


def _host_and_port(key: str, value: Json) -> tuple[str, int]:
    """Return a host's name or IP address, and a port."""
    text = fields.text(key, value)
    try:
        address = Address.parse(text)
    except ValueError:
        host, _, port = text.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            fields.bad(f"{key} must be HOST:PORT, for example 192.0.2.7:4434")
        return host, int(port)
    return str(address.host), address.port
