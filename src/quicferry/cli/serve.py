"""`quicferry serve`: an ASGI application behind a server that can move."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import click

import quicferry
from quicferry import __version__
from quicferry.cli.help import Command
from quicferry.cli.options import address
from quicferry.cli.output import Say
from quicferry.cli.serving import (
    Serving,
    Stop,
    close_server,
    load_application,
    make_configuration,
    report_events,
    say_json,
    say_text,
    serving_options,
    set_apart_what_is_loaded,
    stop_requests,
    unless_stopped,
)
from quicferry.protocol import Address
from quicferry.relocation import HandoverCommands
from quicferry.server import ManagementServer, Server, default_management_path

DEFAULT_BIND = "127.0.0.1:4433"


@click.command(
    cls=Command,
    examples=(
        "quicferry serve app:app",
        "quicferry serve shop.asgi:application --bind 0.0.0.0:443 --cert chain.pem --key key.pem",
        "quicferry serve app:app --bind 192.0.2.6:443 --bind [2001:db8::6]:443",
        "quicferry serve app:app --pool 192.0.2.7:443 --pool 198.51.100.9:443",
    ),
    epilog="Exit status: 0 after SIGINT, SIGTERM or `quicferry ctl shutdown`, or when the "
    "connections were handed over; 1 when it cannot start, 2 wrong usage.\n\n"
    'With --json: a line {"event": "listening", "address", "addresses", "management_socket", '
    '"certificate", "pid"}, then a line for each migration event.\n\n'
    "With SSLKEYLOGFILE=FILE in the environment, TLS secrets are appended to that file.",
)
@click.argument("app")
@click.option(
    "--bind",
    "binds",
    multiple=True,
    type=address,
    metavar="HOST:PORT",
    default=(DEFAULT_BIND,),
    show_default=True,
    help="Where to listen; port 0 stands for any free one, [::] for both families. Can be "
    "repeated: the first address can be moved, the others stay.",
)
@serving_options
def serve(app: str, *, binds: tuple[Address, ...], as_json: bool, **options: Any) -> None:
    """Serve the ASGI application APP (module:attribute) over HTTP/3.

    The server is moved through its management socket, whose path it prints: to another address by
    `quicferry ctl`, to another process or host by `quicferry migrate`. SIGINT or SIGTERM stop it,
    when running requests have ended.
    """
    serving = Serving.of(application=app, **options)
    say = say_json if as_json else say_text
    asyncio.run(_serve(serving, binds, load_application(app), say))


async def _serve(serving: Serving, binds: tuple[Address, ...], application: Any, say: Say) -> None:
    bind, *others = binds
    with ExitStack() as files:
        hosts = [str(each.host) for each in binds]
        configuration, certificate = make_configuration(serving, hosts, files)
        async with AsyncExitStack() as stack:
            stop = stack.enter_context(stop_requests(serving))
            starting = quicferry.serve(
                str(bind.host),
                bind.port,
                configuration=configuration,
                app=application,
                retry=serving.retry,
                max_half_open=serving.max_half_open,
                linger=serving.linger,
                grace=serving.grace,
                startup_timeout=serving.startup_timeout,
                limit_concurrency=serving.limit_concurrency,
                key=serving.load_key(),
                others=[(str(each.host), each.port) for each in others],
            )
            server = await unless_stopped(starting, stop)
            if server is None:
                say({"event": "stopped"}, "stopped before the application had started")
                return
            stack.push_async_callback(close_server, server, stop, serving.grace, say)
            socket = serving.socket or default_management_path()
            commands = HandoverCommands(server, serving.application).commands
            await stack.enter_async_context(ManagementServer(server, socket, commands))
            set_apart_what_is_loaded()
            say(
                {
                    "event": "listening",
                    "address": str(server.address),
                    "addresses": [str(each) for each in server.addresses],
                    "management_socket": str(socket),
                    "certificate": str(certificate),
                    "pid": os.getpid(),
                },
                f"quicferry {__version__} serves {serving.application}",
                *(f"  listening on       https://{each}/" for each in server.addresses),
                f"  management socket  {socket}",
            )
            await _until_stopped(server, stop, say)
        say({"event": "stopped"}, "stopped")


async def _until_stopped(server: Server, stop: Stop, say: Say) -> None:
    """Report events until the server is to stop, or has been told so by a management command."""
    waits = [
        asyncio.create_task(stop.asked.wait()),
        asyncio.create_task(server.wait_closed()),
    ]
    events = asyncio.create_task(report_events(server, say))
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (*waits, events):
            task.cancel()
