"""`quicferry migrate`: a running server to another process or host, by whatever technique."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from quicferry.cli.ctl import (
    AUTO,
    DEFAULT_DEADLINE,
    DEFAULT_WAIT,
    SECONDS,
    describe_announced,
    describe_silent,
    find_socket,
)
from quicferry.cli.engines import engine_option
from quicferry.cli.enter import Enter
from quicferry.cli.help import Command
from quicferry.cli.migrate_container import Choices, migrate_container
from quicferry.cli.options import (
    PROTOCOL_NAMES,
    Number,
    address,
    json_option,
)
from quicferry.cli.output import say, say_aside, say_object
from quicferry.protocol import Address, QuicferryError
from quicferry.relocation import Compression, Outcome, Running, Technique
from quicferry.relocation.container.technique import DEFAULT_LEASE
from quicferry.server import ManagementClient, ManagementError
from quicferry.server.management_client import UNREACHABLE

HANDOVER = "handover"
ROLLED_BACK = 1
UNKNOWN = 3
DEFAULT_DRAIN = 5.0


class MigrateError(QuicferryError):
    """The server could not be moved."""


class _SourceLost(click.ClickException):
    """The server has ended during the handover."""

    exit_code = UNKNOWN

    def __init__(self) -> None:
        super().__init__(
            "the server has ended during the handover; its connections live at the destination if "
            "the agent there says that it has adopted them, and else nowhere"
        )


@click.command(
    cls=Command,
    examples=(
        "quicferry migrate --to 192.0.2.7:4434 --identity identities/alpha.example",
        "quicferry migrate --from /run/site.sock --to beta.example:4434 --identity /etc/quicferry "
        "--address 192.0.2.7:443",
        "quicferry migrate --to 127.0.0.2:4434 --identity alpha --drain 30 --force",
        "quicferry migrate --to 127.0.0.2:4434 --identity alpha --step   # rehearse it",
        "quicferry migrate --technique post-copy --engine runc --container site --to "
        "beta.example:4434 --identity /etc/quicferry --address 192.0.2.7:443",
    ),
    epilog="Exit status: 0 the destination has the connections, 1 it has not and the server goes "
    "on where it was, 2 wrong usage, 3 nobody could tell in time, and the source has given them "
    "up or has ended itself.\n\n"
    'With --json: a line {"event": "StepBegun" or "StepEnded", "step", "seconds"} as it happens, '
    '{"event": "DestinationStarts", "seconds"} when the agent starts the application, '
    'with --step also {"event": "StepWaits", "step"}, with a container also '
    '{"event": "Transferred", "bytes", "sent", "total"}, and at the end the report: {"technique", '
    '"outcome", "source", "destination", "phases", '
    '"failed_phase", "reason", "connections", "closed", "silent", "rejected", "announced", '
    '"silence", "bytes", "followed", "pending", "lost", "started_at", "owned_at"}; times in '
    "seconds.",
)
@click.option(
    "--from",
    "--socket",
    "socket",
    type=click.Path(path_type=Path),
    metavar="SOCKET",
    help="The server's management socket. Not needed when only one server runs.",
)
@click.option(
    "--to",
    "agent",
    metavar="HOST:PORT",
    required=True,
    help="Where `quicferry agent run`, or `agent receive`, listens on the destination. Its "
    "certificate has to name HOST, unless --peer is given.",
)
@click.option(
    "--peer",
    metavar="NAME",
    help="What the agent's certificate has to name.  [default: the host of --to]",
)
@click.option(
    "--identity",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Directory with this host's certificate.pem, key.pem and peers.pem or ca.pem: see "
    "`quicferry agent init`.",
)
@click.option(
    "--technique",
    type=click.Choice([HANDOVER, *(each.value for each in Technique)]),
    default=HANDOVER,
    show_default=True,
    help="What moves: the connections (handover), or the container in which the server runs.",
)
@engine_option
@click.option(
    "--container", metavar="NAME", help="The container, where that is moved; --from is not needed."
)
@click.option(
    "--compress",
    type=click.Choice([each.value for each in Compression]),
    default=Compression.ZSTD.value,
    show_default=True,
    help="How a container is compressed on its way.",
)
@click.option(
    "--lease",
    type=SECONDS,
    default=DEFAULT_LEASE,
    show_default=True,
    help="Seconds that a container may be stopped before it goes on where it was.",
)
@click.option(
    "--address",
    type=address,
    metavar="HOST:PORT",
    help="Where the server goes, as clients reach it.  [default: the host of --to, and the port "
    "that the server has now]",
)
@click.option(
    "--protocol",
    type=click.Choice([AUTO, *PROTOCOL_NAMES]),
    default=AUTO,
    show_default=True,
    help="Migration protocol; auto takes the best one that each client has agreed to.",
)
@click.option(
    "--deadline",
    type=SECONDS,
    default=DEFAULT_DEADLINE,
    show_default=True,
    help="Seconds that the connections have to get ready. Those whose clients acknowledge nothing "
    "meanwhile are not waited for, but left behind.",
)
@click.option(
    "--unready",
    type=click.Choice(["abort", "leave"]),
    default="abort",
    show_default=True,
    help="What to do when connections are not ready: not to move, or to move without them.",
)
@click.option(
    "--drain",
    type=Number(min=0, max=3600),
    default=DEFAULT_DRAIN,
    show_default=True,
    help="Seconds that running requests have to come to their end.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Reset the requests that are still running then, instead of not moving.",
)
@click.option(
    "--timeout",
    "limit",
    type=SECONDS,
    default=DEFAULT_WAIT,
    show_default=True,
    help="Seconds to wait for the clients to follow, for the report.",
)
@click.option(
    "--step",
    is_flag=True,
    help="Wait for Enter before each step: to watch, or to rehearse failures. The end of the input "
    "goes back.",
)
@json_option
def migrate(
    *,
    socket: Path | None,
    agent: str,
    peer: str | None,
    identity: Path,
    technique: str,
    engine: str,
    container: str | None,
    compress: str,
    lease: float,
    address: Address | None,
    force: bool,
    step: bool,
    limit: float,
    as_json: bool,
    **fields: Any,
) -> None:
    """Move a server to another process or host; its clients stay connected.

    With the technique handover its connections go. The server was started with `quicferry serve`,
    or adopted by an agent before, and `quicferry agent run` waits at the destination with the same
    application. With the others the whole container goes that it runs in, see `quicferry image`;
    `quicferry agent receive` waits at the destination, and both are run as root.

    Until the destination has everything, any failure leaves the server and its clients as they
    were; Ctrl-C is one. After it the server ends here.
    """
    teller = _Teller(as_json)
    _refuse_useless_options(technique)
    if technique != HANDOVER:
        if container is None:
            raise click.UsageError(f"--technique {technique} needs --container")
        fields["peer"] = peer
        choices = Choices(
            Technique(technique), engine, container, Compression(compress), lease, identity, step
        )
        fields["timeout"] = limit
        where = partial(_destination, agent, address)
        moving = migrate_container(choices, _host_and_port(agent), where, fields, teller.event)
        report = asyncio.run(moving)
        teller.report(report)
        sys.exit(_EXIT_STATUS[Outcome(report["outcome"])])
    running = Running.RESET if force else Running.ABANDON
    fields.update(
        agent=agent,
        identity=str(identity.absolute()),
        address=None if address is None else str(address),
        running=running.value,
        timeout=limit,
        peer=peer,
        pace="step-by-step" if step else "at-once",
    )
    report = asyncio.run(_migrate(socket or find_socket(), fields, teller))
    sys.exit(_EXIT_STATUS[Outcome(report["outcome"])])


_ONLY_CONNECTIONS = {"socket": "--from", "drain": "--drain", "force": "--force"}
_ONLY_CONTAINERS = {
    "container": "--container",
    "engine": "--engine",
    "compress": "--compress",
    "lease": "--lease",
}


def _refuse_useless_options(technique: str) -> None:
    """Refuse options that have been given and mean nothing for a technique."""
    useless = _ONLY_CONTAINERS if technique == HANDOVER else _ONLY_CONNECTIONS
    context = click.get_current_context()
    for name, option in useless.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"{option} is of no use with --technique {technique}")


_EXIT_STATUS = {
    Outcome.COMMITTED: 0,
    Outcome.ROLLED_BACK: ROLLED_BACK,
    Outcome.GIVEN_UP: UNKNOWN,
}


_SLOW = 1.0
"""Seconds after which people are told what takes so long."""


class _Teller:
    """Tells how it goes: as JSON lines on stdout, or in words on stderr."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._ended: set[str] = set()
        self._slow: asyncio.TimerHandle | None = None

    def event(self, event: dict[str, Any]) -> None:
        """Tell how far it is."""
        if self._slow is not None:
            self._slow.cancel()
        if event["event"] == "StepEnded":
            self._ended.add(event["step"])
        if self._as_json:
            say_object(event)
        elif event["event"] == "StepEnded":
            say_aside(f"{event['step']:<9} {event['seconds'] * 1000:9.1f} ms")
        elif event["event"] == "DestinationStarts":
            text = f"the agent starts the application, for {event['seconds']:g} s at most"
            loop = asyncio.get_running_loop()
            self._slow = loop.call_later(_SLOW, say_aside, text)
        elif event["event"] == "StepWaits":
            step = event["step"]
            say_aside(f"{step} waits: press Enter to go on, or Ctrl-C to go back")

    def report(self, report: dict[str, Any]) -> None:
        """Tell what has become of it."""
        for step, seconds in report["phases"].items():
            if step not in self._ended:  # the report has overtaken it
                self.event({"event": "StepEnded", "step": step, "seconds": seconds})
        if self._as_json:
            say_object(report)
        else:
            tell = say if report["outcome"] == Outcome.COMMITTED.value else say_aside
            tell(*_describe(report))


async def _migrate(socket: Path, fields: dict[str, Any], teller: _Teller) -> dict[str, Any]:
    async with ManagementClient.connect(socket) as management:
        if fields["address"] is None:
            status = await management.command("status")
            fields["address"] = _default_address(fields["agent"], status["address"])
        events = await management.events()
        asked = asyncio.create_task(management.command("handover", **fields))
        waiting: asyncio.Queue[str] = asyncio.Queue()
        helpers = [asyncio.create_task(_tell(events, teller, waiting))]
        if fields["pace"] == "step-by-step":
            helpers.append(asyncio.create_task(_step(management, waiting)))
        loop = asyncio.get_running_loop()
        aborting: list[asyncio.Task[None]] = []
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(
                number,
                lambda: aborting.append(asyncio.create_task(_abort(management))),
            )
        try:
            report = await asked
        except ManagementError as exc:
            raise _SourceLost if exc.code == UNREACHABLE else exc from None
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)
            for task in helpers:
                task.cancel()
            await asyncio.gather(*helpers, *aborting, return_exceptions=True)
    teller.report(report)
    return report


async def _tell(events: Any, teller: _Teller, waiting: asyncio.Queue[str]) -> None:
    async for event in events:
        if event["event"] in ("StepWaits", "StepBegun", "StepEnded"):
            teller.event({key: event[key] for key in event if key != "connection"})
        if event["event"] == "StepWaits":
            waiting.put_nowait(event["step"])


async def _step(management: ManagementClient, waiting: asyncio.Queue[str]) -> None:
    """Let each step begin when Enter is pressed; the end of the input goes back, or else on."""
    enter = Enter()
    while step := await waiting.get():
        if await enter.pressed():
            with suppress(ManagementError):  # it was aborted meanwhile
                await management.command("proceed")
            continue
        try:
            await management.command("abort")
            say_aside(f"standard input has ended, so it goes back before {step}")
        except ManagementError:
            say_aside("standard input has ended, and it is too late to go back, so it goes on")
            with suppress(ManagementError):
                await management.command("proceed", pace="at-once")
        return


async def _abort(management: ManagementClient) -> None:
    try:
        await management.command("abort")
    except ManagementError as exc:
        say_aside(str(exc))


def _host_and_port(agent: str) -> tuple[str, int]:
    """Return where the agent is."""
    host, _, port = agent.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise click.UsageError("--to must be HOST:PORT, for example 192.0.2.7:4434")
    return host.strip("[]"), int(port)


def _destination(agent: str, given: Address | None, current: Address) -> Address:
    """Return where a server goes that is at `current`."""
    return given or Address.parse(_default_address(agent, str(current)))


def _default_address(agent: str, current: str) -> str:
    """Return the server's port at the agent's host."""
    host = agent.rpartition(":")[0].strip("[]")
    port = current.rpartition(":")[2]
    text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        return str(Address.parse(text))
    except ValueError as exc:
        raise MigrateError(
            f"{host!r} is no IP address, so give the one that clients reach: --address HOST:{port}"
        ) from exc


def _describe(report: dict[str, Any]) -> list[str]:
    where = f"from {report['source']} to {report['destination']}"
    if report["outcome"] == Outcome.ROLLED_BACK.value:
        phase = report["failed_phase"] or "offer"
        return [
            f"not moved: {report['reason']} (in {phase})",
            "the server may be silent: look at the container and its log"
            if "; then: " in report["reason"]
            else f"the server and its clients go on at {report['source']}",
            *describe_announced(report["announced"]),
        ]
    if report["outcome"] == Outcome.GIVEN_UP.value:
        return [
            f"nobody knows: {report['reason']}",
            f"{len(report['closed'])} connections were given up at {report['source']}; they live "
            f"at {report['destination']} if the agent there has got the last word",
            f"the server goes on at {report['source']} for new clients; stop it if the agent "
            "serves them",
        ]
    lines = [
        f"moved {where}: {len(report['connections'])} connections, {report['bytes']} bytes",
        f"silent for {report['silence'] * 1000:.1f} ms",
    ]
    if report["closed"]:
        lines.append(f"{len(report['closed'])} connections could not migrate and were closed")
        lines += describe_silent([name for name in report["silent"] if name in report["closed"]])
    lines += [f"reset: {request}" for request in report["rejected"]]
    if report["followed"]:
        lines.append(
            "all other clients have followed" if report["lost"] else "all clients have followed"
        )
    else:
        lines.append(f"{len(report['pending'])} clients have not been heard of yet")
        lines.append(
            "(behind a NAT, clients of the symmetric protocols do not hear a server at an address "
            "that they know nothing of; --protocol explicit and pool-of-addresses work there)"
        )
    lines += [f"lost: {name}" for name in report["lost"]]
    return lines
