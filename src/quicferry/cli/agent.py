"""`quicferry agent`: what waits on a host for servers that are moved there."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path
from typing import Any

import click

from quicferry import __version__
from quicferry.cli.help import Elsewhere, Group
from quicferry.cli.options import Number, address, json_option
from quicferry.cli.output import Say
from quicferry.cli.serving import (
    Serving,
    close_server,
    load_application,
    make_configuration,
    report_events,
    say_json,
    say_text,
    serving_options,
    set_apart_what_is_loaded,
    stop_requests,
)
from quicferry.protocol import Address
from quicferry.relocation import (
    Adopted,
    Agent,
    AgentEvent,
    Destinations,
    Discarded,
    HandoverCommands,
    Identity,
    Offered,
    Place,
    Released,
    make_identities,
)
from quicferry.relocation.handover.agent import DEFAULT_CAPACITY, DEFAULT_ROOM
from quicferry.relocation.steps.reception import DEFAULT_PATIENCE
from quicferry.server import ManagementServer, Server, default_management_path

TRUST = "where one runs `agent receive`, the others are root"

DEFAULT_LISTEN = "127.0.0.1:4434"

listen_option = click.option(
    "--listen",
    type=address,
    metavar="HOST:PORT",
    default=DEFAULT_LISTEN,
    show_default=True,
    help="Where sources find the agent (TCP); port 0 stands for any free one.",
)
identity_option = click.option(
    "--identity",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Directory with certificate.pem, key.pem, and peers.pem or ca.pem: see `agent init`.",
)


def place(text: str) -> Place:
    """Parse an IP address, with a port or without."""
    try:
        return Place.parse(text)
    except ValueError as exc:
        raise click.BadParameter(str(exc)) from exc


allow_address_option = click.option(
    "--allow-address",
    "places",
    multiple=True,
    type=place,
    metavar="HOST[:PORT]",
    help="Where servers may go, and nowhere else; can be repeated.  [default: addresses of this "
    "host, with ports from 1024 on and those that the configuration names]",
)
patience_option = click.option(
    "--patience",
    type=Number(min=0, min_open=True),
    default=DEFAULT_PATIENCE,
    show_default=True,
    help="Seconds that a source may wait for its clients and their requests before it begins.",
)


@click.group(
    cls=Group,
    examples=(
        "quicferry agent init --out identities alpha.example beta.example",
        "quicferry agent run app:app --listen 192.0.2.7:4434 --identity identities/beta.example",
    ),
    elsewhere={
        "receive": Elsewhere(
            ".agent_receive",
            "receive",
            "Receive containers that are moved here by `quicferry migrate`; to be run as root.",
        ),
    },
    epilog="Exit status: 0 success, 1 failure, 2 wrong usage.",
)
def agent() -> None:
    """Wait on a host for servers that are moved there by `quicferry migrate`."""


@agent.command(
    examples=(
        "quicferry agent init alpha.example beta.example",
        "quicferry agent init --out /etc/quicferry 192.0.2.6 192.0.2.7",
    )
)
@click.argument("hosts", nargs=-1, required=True, metavar="HOST HOST...")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Directory to make the identities in.  [default: the current one]",
)
@json_option
def init(hosts: tuple[str, ...], *, out: Path, as_json: bool) -> None:
    """Make an identity for each HOST, so that these hosts trust one another and nobody else.

    Copy each directory to its host; it holds the host's private key. The other hosts' certificates
    are in its peers.pem. They may hand servers over, and to `agent receive` also containers: there
    they are as good as root. Instead of peers.pem a ca.pem may stand there: then every host is
    trusted whose certificate this authority has signed.
    """
    folders = make_identities(out, hosts)
    say = say_json if as_json else say_text
    for host, folder in folders.items():
        say({"host": host, "identity": str(folder)}, f"{host}: {folder}")
    if not as_json:
        say_text({}, f"they trust one another with their servers' keys; {TRUST}")


@agent.command(
    examples=(
        "quicferry agent run app:app --identity identities/beta.example",
        "quicferry agent run app:app --listen 192.0.2.7:4434 --identity /etc/quicferry/192.0.2.7 "
        "--cert chain.pem --key key.pem",
    ),
    epilog='With --json: a line {"event": "listening", "address", "pid"}, a line for each of the '
    'events "Offered", "Adopted", "Discarded", "Released", and for an adopted server a line '
    '{"event": "serving", "address", "management_socket"} and its migration events.',
)
@click.argument("app")
@listen_option
@identity_option
@click.option(
    "--capacity",
    type=click.IntRange(min=0),
    default=DEFAULT_CAPACITY,
    show_default=True,
    help="Connections that a server may have to be accepted.",
)
@click.option(
    "--room",
    type=click.IntRange(min=1),
    metavar="MB",
    default=DEFAULT_ROOM >> 20,
    show_default=True,
    help="Megabytes that connections and the state of the application may take on their way.",
)
@allow_address_option
@patience_option
@serving_options
def run(
    app: str,
    *,
    listen: Address,
    identity: Path,
    capacity: int,
    room: int,
    places: tuple[Place, ...],
    patience: float,
    as_json: bool,
    **options: Any,
) -> None:
    """Adopt servers of the ASGI application APP (module:attribute), and serve their clients.

    The server on the other host must have been started with the same APP. An adopted server has a
    management socket, and can be moved on. SIGINT or SIGTERM stop the agent, and what it
    serves when running requests have ended.
    """
    serving = Serving.of(application=app, **options)
    say = say_json if as_json else say_text
    application = load_application(app)
    limits = {
        "capacity": capacity,
        "room": room << 20,
        "destinations": Destinations(places),
        "patience": patience,
    }
    asyncio.run(_run(serving, application, Identity.load(identity), listen, limits, say))


async def _run(
    serving: Serving,
    application: Any,
    identity: Identity,
    listen: Address,
    limits: dict[str, Any],
    say: Say,
) -> None:
    with ExitStack() as files:
        configuration, _ = make_configuration(serving, [str(listen.host)], files)
        async with AsyncExitStack() as stack:
            stop = stack.enter_context(stop_requests(serving))
            running = Agent(
                application,
                application=serving.application,
                configuration=configuration,
                identity=identity,
                listen=listen,
                retry=serving.retry,
                linger=serving.linger,
                grace=serving.grace,
                startup_timeout=serving.startup_timeout,
                limit_concurrency=serving.limit_concurrency,
                key=serving.load_key(),
                **limits,
                max_half_open=serving.max_half_open,
            )
            await stack.enter_async_context(running)
            set_apart_what_is_loaded()
            following = asyncio.create_task(_follow(running, serving, say))
            say(
                {"event": "listening", "address": str(running.address), "pid": os.getpid()},
                f"quicferry {__version__} waits for servers of {serving.application}",
                f"  listening on  {running.address} (TCP), as {identity.name}",
            )
            stopping = asyncio.create_task(stop.asked.wait())
            await asyncio.wait((stopping, following), return_when=asyncio.FIRST_COMPLETED)
            for task in (stopping, following):
                task.cancel()
            await asyncio.gather(stopping, following, return_exceptions=True)
            if running.server is not None:
                await close_server(running.server, stop, serving.grace, say)
        say({"event": "stopped"}, "stopped")


async def _follow(running: Agent, serving: Serving, say: Say) -> None:
    """Tell what happens, and manage each adopted server."""
    served: set[asyncio.Task[None]] = set()
    try:
        async for event in running.events():
            say(encode_agent_event(event), describe_agent_event(event))
            if isinstance(event, Adopted) and running.server is not None:
                task = asyncio.create_task(_manage(running.server, serving, say))
                served.add(task)
                task.add_done_callback(served.discard)
    finally:
        for task in served:
            task.cancel()
        await asyncio.gather(*served, return_exceptions=True)


async def _manage(server: Server, serving: Serving, say: Say) -> None:
    """Provide a management socket for as long as the server lives."""
    socket = serving.socket or default_management_path()
    commands = HandoverCommands(server, serving.application).commands
    async with ManagementServer(server, socket, commands):
        say(
            {
                "event": "serving",
                "address": str(server.address),
                "management_socket": str(socket),
            },
            f"  listening on       https://{server.address}/",
            f"  management socket  {socket}",
        )
        await report_events(server, say)
        await server.wait_closed()


def encode_agent_event(event: AgentEvent) -> dict[str, Any]:
    """Return an event of an agent in values that JSON can express."""
    values = dict(vars(event))
    texts = {name: str(value) for name, value in values.items() if isinstance(value, Address)}
    return {"event": type(event).__name__, **values, **texts}


def describe_agent_event(event: AgentEvent) -> str:
    """Return an event of an agent in words."""
    match event:
        case Offered(source, address, connections):
            return f"{source} wants to hand over {connections} connections, to {address}"
        case Adopted(source, address, connections):
            return f"adopted {connections} connections of {source}"
        case Discarded(source, reason):
            return f"nothing came of the handover from {source}: {reason}"
        case Released():
            return "the server has ended here"
    return ""
