"""Management commands of a server that is carried with its whole process, as in a container.

Whoever moves the container gives them, in the order of `quicferry.server.Suspension`: ``suspend``
at the source; then ``appear``, ``activate`` and ``settle`` at the destination, or ``resume`` at the
source; or ``drop`` if nobody knows whether the destination has the connections. ``suspend`` also
closes all management connections: a process that shares a socket with another one cannot be carried
away. So its reply is the last thing to be read from this connection.
"""

from __future__ import annotations

import asyncio
import base64
import enum
import logging

from quicferry.server import (
    RelocationError,
    RelocationErrorCode,
    Server,
    Suspension,
    fields,
    working_memory,
)
from quicferry.server.commands import Afterwards, Command, Commands, Fields
from quicferry.server.fields import REQUIRED, Field, Json

from ..ownership.destination import HOLD

logger = logging.getLogger("quicferry.relocation")


class Memory(enum.Enum):
    """How the memory of the process gets to the other host."""

    CARRIED = "carried"
    """With the rest."""
    FETCHED = "fetched"
    """When it is needed, except for what is needed at once."""


class SuspensionCommands:
    """The commands of one server.

    Args:
        server: The server.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._under_way: Suspension | None = None
        self._has_appeared = False
        self._settling: asyncio.TimerHandle | None = None

    @property
    def commands(self) -> Commands:
        """The commands, by name."""
        return {
            "suspend": Command(
                {
                    "address": Field(fields.address, REQUIRED),
                    "memory": Field(fields.choice(Memory), Memory.CARRIED),
                },
                self._suspend,
                afterwards=Afterwards.HANG_UP,
            ),
            "resume": Command({}, self._resume),
            "drop": Command({}, self._drop),
            "appear": Command({"address": Field(fields.address, REQUIRED)}, self._appear),
            "activate": Command({"hold": Field(fields.seconds, HOLD)}, self._activate),
            "settle": Command({}, self._settle),
        }

    @property
    def _suspension(self) -> Suspension:
        if self._under_way is None:
            raise RelocationError(
                RelocationErrorCode.NOT_PREPARED,
                "the server is not suspended; give the command suspend first",
            )
        return self._under_way

    async def _suspend(self, server: Server, given: Fields) -> dict[str, Json]:
        if given["memory"] is Memory.FETCHED and not working_memory.lock():
            logger.warning("memory cannot be locked, so all of it will be fetched; see mlock(2)")
        suspension = server.suspension()
        farewells = suspension.suspend(given["address"])
        self._under_way = suspension
        self._has_appeared = False
        return {
            "connections": list(suspension.connections),
            "left": list(suspension.left),
            "farewells": [
                {
                    "source": each.source[:2],
                    "destination": each.destination[:2],
                    "data": base64.b64encode(each.data).decode(),
                }
                for each in farewells
            ],
        }

    async def _resume(self, server: Server, given: Fields) -> dict[str, Json]:
        if self._has_appeared:
            raise RelocationError(
                RelocationErrorCode.ALREADY_SWITCHED,
                "this is the copy, which waits for the word of the agent; end it instead",
            )
        working_memory.unlock()
        self._suspension.resume()
        self._under_way = None
        return {}

    async def _drop(self, server: Server, given: Fields) -> dict[str, Json]:
        working_memory.unlock()
        self._suspension.drop()
        self._under_way = None
        return {}

    async def _appear(self, server: Server, given: Fields) -> dict[str, Json]:
        self._suspension.appear(given["address"])
        self._has_appeared = True
        return {}

    async def _activate(self, server: Server, given: Fields) -> dict[str, Json]:
        suspension = self._suspension
        left = suspension.activate()
        loop = asyncio.get_running_loop()
        self._settling = loop.call_later(given["hold"], self._settle_now, suspension)
        return {"closed": list(left)}

    async def _settle(self, server: Server, given: Fields) -> dict[str, Json]:
        if self._settling is None:
            raise RelocationError(
                RelocationErrorCode.NOT_PREPARED, "the server has no original that could come back"
            )
        self._settle_now(self._suspension)
        return {}

    def _settle_now(self, suspension: Suspension) -> None:
        """Settle, because somebody says so, or because the original's time is over."""
        if self._settling is not None and suspension is self._under_way:
            self._settling.cancel()
            self._settling = self._under_way = None
            self._has_appeared = False
            suspension.settle()
            working_memory.unlock()
