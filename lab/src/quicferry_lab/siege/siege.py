"""Puts a server under siege, and measures what its good client and its memory say."""

from __future__ import annotations

import asyncio
import math
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quicferry.relocation.link.identity import make_identities
from quicferry.server import ManagementClient, ManagementError
from quicferry.server.certificate import self_signed
from quicferry_lab.demo.processes import Child, DemoError, child
from quicferry_lab.memory import resident_memory
from quicferry_lab.patience import patient

from .attacks import ATTACKS, Ground

APPLICATION = "quicferry_lab.demo.app:app"
HERE, THERE = "127.0.0.1", "127.0.0.2"

MOST_WAITING = 0.1
"""Seconds that the good client's 99th percentile may take under attack."""
MOST_TIMES = 10.0
"""How many times as long as without the attack it may take."""
MOST_GROWTH = 64 << 20
"""Bytes that the server's resident memory may grow by."""

_START_LIMIT = 20.0
_END_LIMIT = 15.0
_LOOK_AGAIN = 0.1


@dataclass(frozen=True)
class Row:
    """What came of one attack.

    Attributes:
        attack: Its name.
        calm: The good client's 99th percentile without the attack, in seconds.
        besieged: That with it.
        requests: How many requests the good client sent meanwhile.
        unanswered: How many of these were not answered.
        growth: Bytes by which the resident memory of the server has grown at most.
        done: How often the attacker did what it does.
        problem: What else is wrong; empty if nothing is.
    """

    attack: str
    calm: float
    besieged: float
    requests: int
    unanswered: int
    growth: int
    done: int
    problem: str = ""

    @property
    def missed(self) -> list[str]:
        """What does not hold."""
        problems = [self.problem] if self.problem else []
        if self.unanswered:
            problems.append(f"{self.unanswered} requests without an answer")
        if self.besieged > MOST_WAITING:
            problems.append(f"waits more than {MOST_WAITING * 1000:.0f} ms")
        if self.besieged > MOST_TIMES * self.calm:
            problems.append(f"waits more than {MOST_TIMES:.0f} times as long")
        if self.growth > MOST_GROWTH:
            problems.append(f"takes more than {MOST_GROWTH >> 20} MB")
        if not self.done:
            problems.append("the attack has not taken place")
        return problems


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that so large a share of all does not exceed; inf of none."""
    ordered = sorted(values)
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else math.inf


async def besiege(attack: str, seconds: float) -> Row:
    """Carry out an attack on a server of its own.

    Args:
        attack: Its name.
        seconds: How long it takes; before, the good client is alone for half as long.

    Raises:
        DemoError: If the siege could not be laid.
    """
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="quicferry-siege-")))
        return await _Siege(attack, seconds, folder, stack).run()


class _Siege:
    def __init__(self, attack: str, seconds: float, folder: Path, stack: AsyncExitStack) -> None:
        self._attack = attack
        self._ground = ATTACKS[attack].ground
        self._seconds = seconds
        self._folder = folder
        self._stack = stack
        self._port = _free_port(socket.SOCK_DGRAM)
        self._agent_port = _free_port(socket.SOCK_STREAM)

    async def run(self) -> Row:
        certificate, key = self_signed([HERE, THERE])
        (self._folder / "certificate.pem").write_bytes(certificate)
        (self._folder / "key.pem").touch(mode=0o600)
        (self._folder / "key.pem").write_bytes(key)
        make_identities(self._folder / "identities", [HERE, THERE])
        besieged = await self._quicferry(
            "server", "serve", APPLICATION, "--bind", f"{HERE}:{self._port}"
        )
        good = await self._started("good client", "quicferry_lab.siege.good", HERE, str(self._port))
        await _message(good, "connected")
        if self._ground is Ground.AGENT:
            agent = ("--listen", f"{THERE}:{self._agent_port}", "--identity", self._identity(THERE))
            besieged = await self._quicferry("agent", "agent", "run", APPLICATION, *agent)
            report = await self._hand_over()
            if report["outcome"] != "committed":
                raise DemoError(f"the server could not be handed over: {report}")
        pid = besieged.listening["pid"]
        calm_at = time.monotonic()
        await asyncio.sleep(self._seconds / 2)
        memory = resident_memory(pid)
        attacked_at = time.monotonic()
        attacker = await self._attacker()
        watching = asyncio.create_task(_most_memory(pid))
        if self._ground in (Ground.MOVING, Ground.SOURCE):
            async with limited(self._seconds + _END_LIMIT, "the attack did not begin"):
                await _message(attacker, "begun")
        beside = asyncio.create_task(self._beside(attacked_at + self._seconds))
        async with limited(self._seconds + _END_LIMIT, "the attack did not end"):
            over = await _message(attacker, "over")
        ended_at = time.monotonic()
        async with limited(_END_LIMIT, "the server's part did not end"):
            problem = await beside
        watching.cancel()
        most = await watching
        good.end_input()
        async with limited(_END_LIMIT, "the good client did not end"):
            requests = (await _message(good, "over"))["requests"]
        calm = [took for due, took in requests if calm_at <= due < attacked_at]
        meanwhile = [took for due, took in requests if attacked_at <= due < ended_at]
        answered = [took for took in meanwhile if took is not None]
        return Row(
            attack=self._attack,
            calm=percentile([took for took in calm if took is not None], 0.99),
            besieged=percentile(answered, 0.99),
            requests=len(meanwhile),
            unanswered=len(meanwhile) - len(answered),
            growth=most - memory,
            done=over["done"],
            problem=problem,
        )

    async def _attacker(self) -> Child:
        host = THERE if self._ground is Ground.AGENT else HERE
        arguments = [self._attack, "--server", f"{host}:{self._port}"]
        arguments += ["--agent", f"{THERE}:{self._agent_port}", "--seconds", str(self._seconds)]
        identity = THERE if self._ground is Ground.SOURCE else HERE
        arguments += ["--identity", self._identity(identity)]
        return await self._started("attacker", "quicferry_lab.siege.attacks", *arguments)

    async def _beside(self, until: float) -> str:
        """Do what belongs to the attack at the server's side; return a problem."""
        match self._ground:
            case Ground.MOVING:
                return await self._move()
            case Ground.SOURCE:
                while True:
                    with suppress(ManagementError):
                        if (await self._hand_over())["outcome"] == "committed":
                            return "the server was handed over to the attacker"
                    await asyncio.sleep(_LOOK_AGAIN)
                    if time.monotonic() >= until:
                        return ""
        return ""

    async def _move(self) -> str:
        there = f"{THERE}:{self._port}"
        try:
            async with self._management() as management:
                await management.command("imminent", address=there, bind=there)
                await management.command("switch", address=there)
        except ManagementError as exc:
            return f"the server cannot move: {exc}"
        return ""

    async def _hand_over(self) -> dict[str, Any]:
        async with self._management() as management:
            return await management.command(
                "handover",
                agent=f"{THERE}:{self._agent_port}",
                identity=self._identity(HERE),
                address=f"{THERE}:{self._port}",
                timeout=5,
            )

    @asynccontextmanager
    async def _management(self) -> AsyncIterator[ManagementClient]:
        async with ManagementClient.connect(self._folder / "server.sock") as management:
            yield management

    def _identity(self, host: str) -> str:
        return str(self._folder / "identities" / host)

    async def _quicferry(self, name: str, *arguments: str) -> Child:
        options = ["--json", "--until-eof", "--socket", str(self._folder / f"{name}.sock")]
        options += ["--cert", str(self._folder / "certificate.pem")]
        options += ["--key", str(self._folder / "key.pem")]
        started = await self._started(name, "quicferry.cli", *arguments, *options)
        started.listening = await _message(started, "listening")
        return started

    async def _started(self, name: str, module: str, *arguments: str) -> Child:
        return await self._stack.enter_async_context(child(name, module, arguments))


async def _message(process: Child, event: str) -> dict[str, Any]:
    """Return what a process says about an event.

    Raises:
        DemoError: If it ends before.
    """
    async for message in process.messages():
        if message["event"] == event:
            return message
    raise await process.unexpected_end()


async def _most_memory(pid: int) -> int:
    most = 0
    try:
        while True:
            most = max(most, resident_memory(pid))
            await asyncio.sleep(_LOOK_AGAIN)
    except (asyncio.CancelledError, OSError):
        return most


def _free_port(kind: socket.SocketKind) -> int:
    """Return a port that is free at both addresses."""
    while True:
        with socket.socket(socket.AF_INET, kind) as one, socket.socket(socket.AF_INET, kind) as two:
            one.bind((HERE, 0))
            port: int = one.getsockname()[1]
            try:
                two.bind((THERE, port))
            except OSError:
                continue
            return port


@asynccontextmanager
async def limited(seconds: float, problem: str) -> AsyncIterator[None]:
    """Fail with `problem` when the context takes too long."""
    try:
        async with asyncio.timeout(patient(seconds)):
            yield
    except TimeoutError:
        raise DemoError(f"{problem} within {patient(seconds):.0f} s") from None
