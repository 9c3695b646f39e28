"""`quicferry agent receive`: what waits on a host for whole containers that are moved there."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click

from quicferry import __version__
from quicferry.cli.agent import (
    allow_address_option,
    describe_agent_event,
    encode_agent_event,
    identity_option,
    listen_option,
    patience_option,
)
from quicferry.cli.engines import engine_option
from quicferry.cli.help import Command
from quicferry.cli.options import json_option
from quicferry.cli.output import Say
from quicferry.cli.serving import say_json, say_text, stop_signals
from quicferry.protocol import Address
from quicferry.relocation import (
    ContainerAgent,
    Destinations,
    Engine,
    Identity,
    Place,
    Podman,
    Runc,
)


@click.command(
    cls=Command,
    examples=(
        "quicferry agent receive --bundle /var/lib/site --container site --listen 192.0.2.7:4434 "
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
    "--image",
    metavar="NAME",
    help="With podman: the image that containers are made of, the same as at the source.",
)
@click.option(
    "--container",
    metavar="NAME",
    required=True,
    help="Name of the container here, whatever a source calls it.",
)
@click.option(
    "--room",
    type=click.IntRange(min=1),
    metavar="MB",
    help="Megabytes of memory that images of containers may take.  [default: half of the memory]",
)
@click.option(
    "--allow-mount",
    "mounts",
    multiple=True,
    type=click.Path(exists=True, path_type=Path),
    metavar="DIR",
    help="With podman: a directory of this host that the container may mount, beside that of its "
    "socket; can be repeated.",
)
@allow_address_option
@patience_option
@listen_option
@identity_option
@json_option
def receive(
    *,
    engine: str,
    bundle: Path | None,
    image: str | None,
    container: str,
    room: int | None,
    mounts: tuple[Path, ...],
    places: tuple[Place, ...],
    patience: float,
    listen: Address,
    identity: Path,
    as_json: bool,
) -> None:
    """Receive containers that are moved here by `quicferry migrate`; to be run as root.

    A host that this one trusts is root here: what is restored are the processes that it sends. Give
    this agent an identity of its own, whose peers.pem has no host but those.

    Containers live on when the agent ends. SIGINT or SIGTERM stop it.
    """
    say = say_json if as_json else say_text
    made: Engine
    if engine == Podman.name:
        if image is None or bundle is not None:
            raise click.UsageError("--engine podman needs --image, and no --bundle")
        made = Podman(image, mounts)
    else:
        if bundle is None or image is not None:
            raise click.UsageError("--engine runc needs --bundle, and no --image")
        if mounts:
            raise click.UsageError("--allow-mount is for podman; a bundle says what it mounts")
        made = Runc(bundle)
    agent = ContainerAgent(
        made,
        Identity.load(identity),
        listen,
        container=container,
        room=None if room is None else room << 20,
        destinations=Destinations(places),
        patience=patience,
    )
    asyncio.run(_receive(agent, say))


async def _receive(agent: ContainerAgent, say: Say) -> None:
    with stop_signals() as stop:
        async with agent as running:
            say(
                {"event": "listening", "address": str(running.address), "pid": os.getpid()},
                f"quicferry {__version__} waits for containers of {running.engine.name}",
                f"  listening on  {running.address} (TCP)\n"
                "  hosts in its peers.pem are as good as root here",
            )
            following = asyncio.create_task(_follow(running, say))
            await stop.asked.wait()
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
    say({"event": "stopped"}, "stopped")


async def _follow(running: ContainerAgent, say: Say) -> None:
    async for event in running.events():
        say(encode_agent_event(event), describe_agent_event(event))
