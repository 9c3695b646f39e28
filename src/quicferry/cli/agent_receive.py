"""`quicferry agent receive`: what waits on a host for whole containers that are moved there."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from quicferry import __version__
from quicferry.cli.agent import DEFAULT_LISTEN, describe_agent_event, encode_agent_event
from quicferry.cli.help import Command
from quicferry.cli.options import address, common_options, engine_named, engine_option, json_option
from quicferry.cli.serving import Say, say_json, say_text, stop_signals
from quicferry.protocol import Address
from quicferry.relocation import ContainerAgent, Engine, Identity


@click.command(
    cls=Command,
    examples=(
        "quicferry agent receive --bundle /var/lib/site --listen 192.0.2.7:4434 "
        "--identity /etc/quicferry",
    ),
    epilog='With --json: a line {"event": "listening", "address", "pid"}, and a line for each of '
    'the events "Offered", "Adopted", "Discarded".',
)
@engine_option
@click.option(
    "--bundle",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With runc: the directory that containers are made of, the same as at the source; see "
    "`quicferry image`.",
)
@click.option(
    "--container",
    metavar="NAME",
    help="Name of the containers here.  [default: the name at the source]",
)
@click.option(
    "--listen",
    type=address,
    metavar="HOST:PORT",
    default=DEFAULT_LISTEN,
    show_default=True,
    help="Where sources find the agent (TCP); port 0 stands for any free one.",
)
@click.option(
    "--identity",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="Directory with certificate.pem, key.pem, and peers.pem or ca.pem: see `agent init`.",
)
@json_option
@common_options
def receive(
    *,
    engine: str,
    bundle: Path | None,
    container: str | None,
    listen: Address,
    identity: Path,
    as_json: bool,
    qlog: Path | None,
) -> None:
    """Receive containers that are moved here by `quicferry migrate`; to be run as root.

    Containers live on when the agent ends. SIGINT or SIGTERM stop it.
    """
    say = say_json if as_json else say_text
    made = engine_named(engine, bundle)
    asyncio.run(_receive(made, Identity.load(identity), listen, container, say))


async def _receive(
    engine: Engine, identity: Identity, listen: Address, container: str | None, say: Say
) -> None:
    with stop_signals() as stopped:
        async with ContainerAgent(engine, identity, listen, container=container) as running:
            say(
                {"event": "listening", "address": str(running.address), "pid": os.getpid()},
                f"quicferry {__version__} waits for containers of {engine.name}\n"
                f"  listening on  {running.address} (TCP), as {identity.name}",
            )
            following = asyncio.create_task(_follow(running, say))
            await stopped.wait()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
    say({"event": "stopped"}, "stopped")


async def _follow(running: ContainerAgent, say: Say) -> None:
    async for event in running.events():
        say(encode_agent_event(event), describe_agent_event(event))
