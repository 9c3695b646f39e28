"""Moves a server with the container that it runs in: the source's end of cold, pre-copy & co.

`ContainerRelocation` is a `Relocation` that runs beside the server, not in it: it gives the server
its commands through the management socket, has the engine stop and write the container, and sends
what is written to the agent while it is being written. From the freeze on the container is stopped,
until it goes on here or is removed.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quicferry import __version__
from quicferry.protocol import Address, MigrationProtocol, QuicferryError, protocol_name
from quicferry.server import (
    Farewell,
    ManagementClient,
    ManagementError,
    RelocationError,
    RelocationErrorCode,
    RelocationEvent,
    Unready,
)
from quicferry.transport import address_from_network

from ..doctor import problems
from ..errors import EngineError, HandoverError
from ..link import messages
from ..link.identity import Identity
from ..link.messages import Message
from ..ownership.source import Do
from ..steps.orchestration import Gate, Plan, Relocation
from ..steps.report import RelocationReport, Step, Transferred
from ..steps.urgency import Urgency
from .engines import Engine, LazyDump, PageTls, SourceContainer, Technique
from .guard import Guard, Stage
from .images import Compression, ImageDirectory, ImageSender, SendPiece
from .pages import make_page_tls
from .reception import PAGES_LIMIT
from .socket import manage
from .suspension_commands import Memory

DEFAULT_LEASE = 60.0
"""Seconds from the freeze within which a container has to live at the destination."""

MOST_FAREWELLS = 2
"""Datagrams that are sent to one client for a server that has gone."""
LARGEST_FAREWELL = 1500
"""Bytes of one."""

_ENDS = ("source", "destination")
_PROGRESS = 0.1
"""Seconds between two reports of how much was sent."""


@dataclass(frozen=True)
class ContainerPlan(Plan):
    """What is to be done.

    Attributes:
        technique: How the container is moved.
        compression: How its images are compressed on their way.
        lease: Seconds from the freeze within which it has to be committed.
    """

    technique: Technique = Technique.COLD
    compression: Compression = Compression.ZSTD
    lease: float = DEFAULT_LEASE


class ContainerRelocation(Relocation):
    """One relocation of a server with its container; to be run as root on the source host.

    Args:
        container: The container.
        engine: Its engine.
        source: Where the server is.
        plan: What to do.
        identity: What this host proves itself with.
        tell: Called with what happens.
        gate: Awaited before each step; None for no delay.
    """

    def __init__(
        self,
        container: SourceContainer,
        engine: Engine,
        source: Address,
        plan: ContainerPlan,
        identity: Identity,
        *,
        tell: Callable[[RelocationEvent], None] = lambda event: None,
        gate: Gate | None = None,
    ) -> None:
        super().__init__(plan, identity, tell=tell, gate=gate, lease=plan.lease)
        self.technique = plan.technique.value
        self._container = container
        self._engine = engine
        self._address = source
        self._container_plan = plan
        self._tell = tell
        self._resources = AsyncExitStack()
        self._guard: Guard | None = None
        self._urgency = Urgency()
        self._management: ManagementClient | None = None
        self._directory: ImageDirectory | None = None
        self._sender: ImageSender | None = None
        self._tls: PageTls | None = None
        self._lazy: LazyDump | None = None
        self._writing: asyncio.Future[Any] | None = None
        self._suspending: asyncio.Future[dict[str, Any]] | None = None
        self._farewells: list[Farewell] = []
        self._left: tuple[str, ...] = ()
        self._memory = 0
        self._pieces = 0
        self._told_at = 0.0

    async def run(self) -> RelocationReport:
        """Do it, and return what has become of it; nothing is left behind then."""
        async with self._resources:
            try:
                return await super().run()
            finally:
                await self._close()

    @property
    def _source(self) -> Address:
        return self._address

    @property
    def _patience(self) -> float:
        return self._lease_time

    # The steps

    async def _make_offer(self) -> Message:
        plan = self._container_plan
        if found := await problems(plan.technique, self._engine.name):
            raise EngineError(f"this host cannot do {self.technique}: {'; '.join(found)}")
        self._directory = await self._resources.enter_async_context(ImageDirectory())
        self._sender = ImageSender(self._images, self._engine.grows, plan.compression)
        guard = Guard(self._engine.name, self._container.name, self._directory.path)
        self._guard = await self._resources.enter_async_context(guard)
        management = manage(self._container.socket)
        self._management = await self._resources.enter_async_context(management)
        status = await self._management.command("status")
        self._memory = await self._container.memory()
        certificate = key = b""
        if plan.technique.copies_after:
            self._tls, certificate, key = make_page_tls(self._directory.path)
        return messages.ContainerOffer(
            self._machine.handover,
            quicferry_version=__version__,
            technique=plan.technique.value,
            engine=self._engine.name,
            engine_version=await self._engine.version(),
            container=self._container.name,
            image=self._container.image,
            address=str(plan.address),
            connections=len(status["connections"]),
            memory=self._memory,
            lease=plan.lease,
            compression=plan.compression.value,
            page_certificate=certificate,
            page_key=key,
        )

    async def _prepare(self) -> None:
        if self._container_plan.technique.copies_before:
            await self._begin(Step.PRE_COPY)
            await self._write(self._container.pre_dump(self._images), self._send_ahead)
            await self._sender_of_images.finish(self._send_ahead)
        await self._begin(Step.IMMINENT)
        await self._announce()

    async def _announce(self) -> None:
        plan = self._plan
        explicit = plan.protocol in (None, MigrationProtocol.EXPLICIT)
        self._has_announced = True
        preparation = await self._command(
            "imminent",
            protocol=None if plan.protocol is None else protocol_name(plan.protocol),
            address=str(plan.address) if explicit else None,
            deadline=plan.deadline,
            unready=plan.unready.value,
            destination=str(plan.address),
        )
        self._silent = tuple(preparation.get("silent", ()))  # servers of 0.1 do not say
        if preparation["unready"] and plan.unready is Unready.ABORT:
            raise RelocationError(
                RelocationErrorCode.NOT_READY,
                f"connections are not ready: {', '.join(preparation['unready'])}",
            )

    async def _freeze(self) -> None:
        self._tell_guard(Stage.SUSPENDED)
        status = await self._command("status")
        clients = {each["client"] for each in status["connections"]}
        memory = Memory.CARRIED if self._tls is None else Memory.FETCHED
        suspend = self._command("suspend", address=str(self._plan.address), memory=memory.value)
        self._suspending = asyncio.ensure_future(suspend)
        async with asyncio.timeout(self._patience):
            reply = await asyncio.shield(self._suspending)
        self._connections, self._left = tuple(reply["connections"]), tuple(reply["left"])
        self._farewells = list(farewells_of(reply["farewells"], self._address, clients))
        assert self._management is not None, "it has just answered"
        await self._management.wait_closed()
        if self._tls is None:
            await self._write(self._container.dump(self._images), self._send_image)
        else:
            await self._write(self._dump_lazily(self._tls), self._send_image)

    async def _transfer(self) -> int:
        await self._sender_of_images.finish(self._send_image)
        self._report_progress()
        return self._pieces

    async def _dump_lazily(self, tls: PageTls) -> None:
        if self._channel is None:
            raise HandoverError("the link to the agent is lost")
        self._lazy = await self._container.dump_lazily(self._images, tls, self._channel.local_host)
        self._tell_guard(Stage.SUSPENDED, (self._channel.local_host, self._lazy.port))
        self._send(messages.PageServer(self._machine.handover, self._lazy.port))

    @property
    def _images(self) -> Path:
        assert self._directory is not None, "it is made first of all"
        return self._directory.images

    @property
    def _sender_of_images(self) -> ImageSender:
        assert self._sender is not None, "it is made with the directory"
        return self._sender

    async def _write(self, writing: Coroutine[Any, Any, None], send: SendPiece) -> None:
        """Let the engine write, and send what it writes; it is never interrupted at that."""
        self._writing = asyncio.ensure_future(writing)
        await self._sender_of_images.follow(self._writing, send)
        await asyncio.shield(self._writing)

    async def _send_ahead(self, file: str, data: bytes) -> None:
        await self._send_piece(messages.CopyAhead(self._machine.handover, file, data))

    async def _send_image(self, file: str, data: bytes) -> None:
        number, self._pieces = self._pieces, self._pieces + 1
        await self._send_piece(messages.CarryImage(self._machine.handover, number, file, data))

    async def _send_piece(self, message: Message) -> None:
        if self._channel is None:
            raise HandoverError("the link to the agent is lost")
        data = messages.encode(message)
        self._size += len(data)
        await self._channel.send(data)
        now = asyncio.get_running_loop().time()
        if now - self._told_at > _PROGRESS:
            self._told_at = now
            self._report_progress()

    def _report_progress(self) -> None:
        self._tell(Transferred(self._sender_of_images.read, self._size, self._memory))

    def _tell_guard(self, stage: Stage, pages: tuple[str, int] | None = None) -> None:
        if self._guard is not None:
            self._guard.tell(stage, pages)

    # What becomes of it

    def _act(self, actions: Sequence[Do | Message]) -> None:
        if any(isinstance(action, messages.Commit) for action in actions):
            self._tell_guard(Stage.COMMITTING)
        if Do.START_LEASE in actions:
            self._urgency.begin()
        super()._act(actions)
        if self._machine.has_ended:
            self._urgency.end()

    def _call_off(self) -> None:
        if self._suspending is None:
            self._undertake(self._abort_migration())

    def _resume(self) -> None:
        self._undertake(self._bring_back("resume"))

    def _drop(self) -> tuple[str, ...]:
        self._undertake(self._bring_back("drop"))
        return self._connections

    def _depart(self) -> tuple[str, ...]:
        self._undertake(self._leave())
        return self._left

    async def _abort_migration(self) -> None:
        with contextlib.suppress(QuicferryError):  # it has come to that by itself
            await self._command("abort")
        if self._management is not None:
            await self._note_announced(self._management)

    async def _note_announced(self, management: ManagementClient) -> None:
        """Note who still expects the server at the destination, for the report."""
        with contextlib.suppress(ManagementError):
            status = await management.command("status")
            self._announced = {
                each["id"]: each["announced"]
                for each in status["connections"]
                if each.get("announced") is not None and each["state"] == "idle"
            }

    async def _bring_back(self, command: str) -> None:
        """Let the container run, and the server in it serve.

        What was begun is never interrupted: it may have come to its end, and not been heard of.
        """
        await self._end_steps()
        begun = [each for each in (self._suspending, self._writing) if each is not None]
        if begun:
            await asyncio.wait(begun, timeout=self._lease_time)
        if self._lazy is not None:
            await self._lazy.abandon()
        await self._container.resume()
        async with manage(self._container.socket) as management:
            try:
                await management.command(command)
            except ManagementError as exc:
                if exc.code != RelocationErrorCode.NOT_PREPARED.name:
                    raise
                # It had not fallen silent, and may have given the move up itself.
                with contextlib.suppress(ManagementError):
                    await management.command("abort")
            await self._note_announced(management)

    async def _leave(self) -> None:
        """Remove the container, once it is of no use any more, and say farewell."""
        try:
            if self._lazy is not None:
                async with asyncio.timeout(PAGES_LIMIT):
                    await self._lazy.wait()
        except TimeoutError:
            raise EngineError(
                f"the destination has not fetched all memory within {PAGES_LIMIT:g} s"
            ) from None
        finally:
            await self._container.remove()
            _say(self._farewells)

    async def _command(self, name: str, **fields: Any) -> dict[str, Any]:
        if self._management is None:
            raise HandoverError("the server is not managed yet")
        return await self._management.command(name, **fields)


def farewells_of(
    told: Iterable[dict[str, Any]], server: Address, clients: Collection[str]
) -> Iterator[Farewell]:
    """Yield the last words of a server that are sent for it, when it has gone.

    Root sends them, who may send anything from anywhere. So they go from the server's address to
    clients that it had, at most `MOST_FAREWELLS` each.

    Args:
        told: What the server wants to be sent.
        server: Where it is.
        clients: The addresses of its clients.
    """
    count: Counter[str] = Counter()
    for each in told:
        source, destination = (address_from_network(tuple(each[it])) for it in _ENDS)
        data = base64.b64decode(each["data"])
        if source is None or destination is None or len(data) > LARGEST_FAREWELL:
            continue
        is_its_own = source.port == server.port and (
            server.host.is_unspecified or source.host == server.host
        )
        count[str(destination)] += 1
        if is_its_own and str(destination) in clients and count[str(destination)] <= MOST_FAREWELLS:
            yield Farewell(tuple(each["source"]), tuple(each["destination"]), data)


def _say(farewells: Iterable[Farewell]) -> None:
    """Send datagrams that close connections, from the address that they had."""
    for farewell in farewells:
        family = socket.AF_INET6 if ":" in farewell.source[0] else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
            sock.bind(farewell.source)
            sock.sendto(farewell.data, farewell.destination)


async def find_server(container: SourceContainer) -> Address:
    """Return where the server in a container is.

    Raises:
        ManagementError: If it does not answer.
    """
    async with manage(container.socket) as management:
        return Address.parse((await management.command("status"))["address"])
