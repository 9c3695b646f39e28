"""`quicferry ctl`: what an orchestrator tells a running server."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from typing import Any

import click
from aioquic.quic.logger import QuicLoggerTrace

from quicferry.cli.help import Group
from quicferry.cli.options import PROTOCOL_NAMES, Number, json_option, qlog_logger, qlog_option
from quicferry.cli.options import address as parse_address
from quicferry.cli.output import say, say_aside, say_object
from quicferry.protocol import Address, MigrationProtocol, QuicferryError, protocol_name
from quicferry.server import (
    ManagementClient,
    ManagementError,
    RelocationErrorCode,
    is_listened_at,
    management_directory,
)

AUTO = "auto"
EXPLICIT = protocol_name(MigrationProtocol.EXPLICIT)
SECONDS = Number(min=0, min_open=True, max=3600)
DEFAULT_DEADLINE = 5.0
DEFAULT_WAIT = 10.0


class ControlError(QuicferryError):
    """The server could not be reached, or did not do what it was told."""


@dataclass
class Session:
    """A connection to a server's management socket, with what it takes to show its replies."""

    management: ManagementClient
    trace: QuicLoggerTrace | None
    as_json: bool

    async def command(self, name: str, **fields: Any) -> dict[str, Any]:
        """Give the server a command and return the result."""
        given = {key: value for key, value in fields.items() if value is not None}
        self._log("command", {"command": name, **given})
        result = await self.management.command(name, **given)
        self._log("result", {"command": name, **result})
        return result

    def show(self, result: dict[str, Any], *lines: str) -> None:
        """Print a result, as JSON or in words."""
        if self.as_json:
            say_object(result)
        else:
            say(*lines)

    def _log(self, event: str, data: dict[str, Any]) -> None:
        if self.trace is not None:
            self.trace.log_event(category="quicferry", event=event, data=data)


Body = Callable[..., Coroutine[Any, Any, None]]
Command = Callable[..., None]


def _command(body: Body) -> Command:
    """Make a command of a coroutine function of a `Session` and the parameters."""

    def run(
        ctx: click.Context, /, *args: Any, as_json: bool, qlog: Path | None, **kwargs: Any
    ) -> None:
        socket = ctx.obj or find_socket()
        asyncio.run(_run(socket, as_json, qlog, lambda session: body(session, *args, **kwargs)))

    command: Command = update_wrapper(click.pass_context(run), body)
    return json_option(qlog_option(command))


async def _run(
    socket: Path,
    as_json: bool,
    qlog: Path | None,
    body: Callable[[Session], Coroutine[Any, Any, None]],
) -> None:
    traces = qlog_logger(qlog)
    trace = None
    if traces is not None:
        # No QUIC connection gives this trace a name, so time and process do.
        trace = traces.start_trace(is_client=True, odcid=b"ctl%d-%d" % (time.time(), os.getpid()))
    try:
        async with ManagementClient.connect(socket) as management:
            await body(Session(management, trace, as_json))
    finally:
        if traces is not None and trace is not None:
            traces.end_trace(trace)


def find_socket() -> Path:
    """Return the management socket of the only server that this user runs.

    Raises:
        ControlError: There is none, or more than one.
    """
    directory = management_directory()
    found = sorted(directory.glob("*.sock")) if directory.is_dir() else []
    sockets = [path for path in found if is_listened_at(path)]  # one that was killed leaves its own
    if not sockets:
        raise ControlError(f"no server runs with a socket in {directory}; name it with --socket")
    if len(sockets) > 1:
        names = ", ".join(str(path) for path in sockets)
        raise ControlError(f"several servers run; choose one with --socket: {names}")
    return sockets[0]


protocol_option = click.option(
    "--protocol",
    type=click.Choice([AUTO, *PROTOCOL_NAMES]),
    default=AUTO,
    show_default=True,
    help="Migration protocol; auto takes the best one that each client has agreed to.",
)
deadline_option = click.option(
    "--deadline",
    type=SECONDS,
    default=DEFAULT_DEADLINE,
    show_default=True,
    help="Seconds that the connections have to get ready. Those whose clients acknowledge nothing "
    "meanwhile are not waited for, but left behind.",
)
unready_option = click.option(
    "--unready",
    type=click.Choice(["abort", "leave"]),
    default="abort",
    show_default=True,
    help="What to do when connections are not ready, or cannot go there: not to move, or to move "
    "without them.",
)
timeout_option = click.option(
    "--timeout",
    "limit",
    type=SECONDS,
    default=DEFAULT_WAIT,
    show_default=True,
    help="Seconds that the connections have to complete their migration.",
)


@click.group(
    cls=Group,
    examples=(
        "quicferry ctl status",
        "quicferry ctl migrate 127.0.0.2:4433",
        "quicferry ctl --socket /run/site.sock shutdown",
    ),
    epilog="Exit status: 0 success, 1 the server refused or could not be reached, or not every "
    "connection got ready or completed in time, 2 wrong usage.",
)
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    help="The server's management socket. Not needed when only one server runs.",
)
@click.pass_context
def ctl(ctx: click.Context, socket: Path | None) -> None:
    """Tell a running server to move, or ask how it is.

    `migrate` does all that a move takes; `imminent`, `switch` and `wait` are its steps.
    """
    ctx.obj = socket


@ctl.command(examples=["quicferry ctl imminent 127.0.0.2:4433 --protocol explicit"])
@click.argument("address", type=parse_address, required=False)
@protocol_option
@click.option(
    "--connection",
    "connections",
    multiple=True,
    metavar="ID[=PROTOCOL]",
    help="Migrate only the connections named like this; the others are closed at the switch.",
)
@click.option(
    "--elsewhere",
    is_flag=True,
    help="ADDRESS is one of another host, where the server will be carried: it is not tried here.",
)
@deadline_option
@unready_option
@_command
async def imminent(
    session: Session,
    address: Address | None,
    protocol: str,
    connections: tuple[str, ...],
    elsewhere: bool,
    deadline: float,
    unready: str,
) -> None:
    """Prepare every connection for a move to ADDRESS.

    Only Explicit needs ADDRESS; if it is given, it is tried before any client is told. Answers when
    all are ready, or when the deadline has passed.
    """
    if elsewhere and address is None:
        raise click.UsageError("--elsewhere needs ADDRESS")
    choice = _choice(protocol, address)
    common: dict[str, Any] = {"deadline": deadline, "unready": unready}
    if address is not None:
        common["destination" if elsewhere else "bind"] = str(address)
    if connections:
        named = (name.partition("=") for name in connections)
        chosen = {name: {**choice, "protocol": own or protocol} for name, _, own in named}
        result = await session.command("imminent", connections=chosen, **common)
    else:
        result = await session.command("imminent", **choice, **common)
    session.show(result, *_describe_preparation(result))
    if not result["ready"]:
        raise ControlError("not every connection is ready; abort, or switch --unready leave")


@ctl.command(examples=["quicferry ctl switch 127.0.0.2:4433"])
@click.argument("address", type=parse_address)
@unready_option
@_command
async def switch(session: Session, address: Address, unready: str) -> None:
    """Move the server to ADDRESS, after `imminent`."""
    result = await session.command("switch", address=str(address), unready=unready)
    session.show(result, *_describe_switch(result))


@ctl.command(examples=["quicferry ctl wait --timeout 30"])
@timeout_option
@_command
async def wait(session: Session, limit: float) -> None:
    """Wait until every connection has completed its migration."""
    result = await session.command("wait", timeout=limit)
    session.show(result, *_describe_completion(result))
    if not result["completed"]:
        raise ControlError("not every connection has completed its migration yet")


@ctl.command(
    examples=[
        "quicferry ctl migrate 127.0.0.2:4433",
        "quicferry ctl migrate 127.0.0.1:4434 --protocol symmetric --unready leave",
    ]
)
@click.argument("address", type=parse_address)
@protocol_option
@deadline_option
@unready_option
@timeout_option
@_command
async def migrate(
    session: Session,
    address: Address,
    protocol: str,
    deadline: float,
    unready: str,
    limit: float,
) -> None:
    """Move the server to ADDRESS of its host: imminent, switch and wait in one.

    To another process or host it is moved by `quicferry migrate`. The address is tried before any
    client is told. If the move fails or is interrupted (Ctrl-C), clients are told that the server
    stays, and it can be moved anywhere else.
    """
    # As Ctrl-C: whoever ends this command does not want a server that waits for its switch.
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGTERM, os.kill, os.getpid(), signal.SIGINT
    )
    choice = _choice(protocol, address)
    try:
        preparation = await session.command(
            "imminent", **choice, deadline=deadline, unready=unready, bind=str(address)
        )
    except asyncio.CancelledError:
        await _give_up(session)
        raise
    try:
        if not preparation["ready"] and unready == "abort":
            session.show({"imminent": preparation}, *_describe_preparation(preparation))
            raise ControlError("not every connection got ready, so the server stays where it is")
        relocation = await session.command("switch", address=str(address), unready=unready)
    except (QuicferryError, asyncio.CancelledError):
        await _give_up(session)
        raise
    completion = await session.command("wait", timeout=limit)
    session.show(
        {"imminent": preparation, "switch": relocation, "wait": completion},
        *_describe_preparation(preparation),
        *_describe_switch(relocation),
        *_describe_completion(completion),
    )
    if not completion["completed"]:
        raise ControlError("the server has moved, but not every connection has completed")


@ctl.command(examples=["quicferry ctl status --json"])
@_command
async def status(session: Session) -> None:
    """Show where the server is, and its connections."""
    result = await session.command("status")
    session.show(result, *_describe_status(result))


@ctl.command()
@_command
async def abort(session: Session) -> None:
    """Give up a move that was announced; every connection goes on as if nothing had happened.

    Clients are told that the server stays. Those that cannot be told are named.
    """
    result = await session.command("abort")
    session.show(result, "aborted", *describe_announced(result.get("announced", {})))


@ctl.command(examples=["quicferry ctl --socket /run/quicferry/site/server.sock resume"])
@_command
async def resume(session: Session) -> None:
    """Let a server go on that a relocation of its container has left silent.

    That happens if `quicferry migrate` is killed in the moment of the commitment. Make sure first
    that the agent at the destination has not adopted it: two servers with the same connections must
    never live. The container itself has to run.
    """
    session.show(await session.command("resume"), "it goes on")


@ctl.command()
@_command
async def shutdown(session: Session) -> None:
    """End the server when running requests have ended, or when their time of grace is over."""
    session.show(await session.command("shutdown"), "the server shuts down")


async def _give_up(session: Session) -> None:
    """Abort what was announced, and say who cannot be told."""
    try:
        result = await session.command("abort")
    except ManagementError as exc:
        if exc.code != RelocationErrorCode.NOT_PREPARED.name:  # it has been given up already
            say_aside(str(exc))
    else:
        say_aside(*describe_announced(result.get("announced", {})))


def describe_announced(announced: dict[str, str]) -> list[str]:
    """Return in words which clients expect a server elsewhere that has not moved."""
    if not announced:
        return []
    lines = [f"  {name}  still expects the server at {each}" for name, each in announced.items()]
    hint = "  (they cannot be told: move it there, wait until they have gone, or --unready leave)"
    return [*lines, hint]


def describe_silent(names: list[str]) -> list[str]:
    """Return in words which clients are left behind because nothing is heard of them."""
    why = "silent: its client has acknowledged nothing since the announcement, and is left behind"
    return [f"  {name}  {why}" for name in names]


def _choice(protocol: str, address: Address | None) -> dict[str, str]:
    """Return how connections are to migrate; only Explicit, or auto, wants the address."""
    choice = {"protocol": protocol}
    if address is not None and protocol in (AUTO, EXPLICIT):
        choice["address"] = str(address)
    return choice


def _describe_preparation(result: dict[str, Any]) -> list[str]:
    ready = "ready" if result["ready"] else "not ready"
    lines = [f"{ready} after {result['seconds'] * 1000:.1f} ms"]
    lines += [f"  {name}  {protocol}" for name, protocol in result["connections"].items()]
    lines += [f"  {name}  not ready yet" for name in result["unready"]]
    lines += describe_silent(result.get("silent", []))  # servers of 0.1 do not say
    lines += [f"  {name}  cannot migrate: {why}" for name, why in result["unable"].items()]
    lines += [f"  {name}  failed: {why}" for name, why in result["failed"].items()]
    return lines


def _describe_switch(result: dict[str, Any]) -> list[str]:
    return [
        f"switched from {result['source']} to {result['destination']}: "
        f"{len(result['told'])} connections go along, {len(result['closed'])} were closed"
    ]


def _describe_completion(result: dict[str, Any]) -> list[str]:
    lost = [f"  {name}  lost" for name in result["lost"]]
    if result["completed"]:
        return [f"completed {result['seconds'] * 1000:.1f} ms after the switch", *lost]
    return [f"{len(result['pending'])} connections have not completed yet", *lost]


def _describe_status(result: dict[str, Any]) -> list[str]:
    connections = result["connections"]
    lines = [f"{result['address']}  {result['phase']}  {len(connections)} connections"]
    if others := result["addresses"][1:]:
        lines.append(f"also at {', '.join(others)}: what is there stays")
    for each in connections:
        negotiated = each["negotiated"]
        protocols = "no server migration" if negotiated is None else ",".join(negotiated) or "none"
        progress = each["progress"] or "-"
        line = f"  {each['id']}  {each['client']}  {progress}  {protocols}"
        if others:
            line += f"  at {each['server']}"
        if each.get("announced") is not None:  # servers of 0.1 do not say
            line += f"  (told to expect the server at {each['announced']})"
        lines.append(line)
    if (handshakes := result.get("handshakes")) is not None:  # nor do they say this
        lines.append(
            f"handshakes: {handshakes['half_open']} half-open, {handshakes['refused']} refused, "
            f"{handshakes['retried']} retried, {handshakes['dropped']} dropped, "
            f"{handshakes['expired']} expired"
        )
    return lines
