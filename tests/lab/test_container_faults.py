"""What goes wrong while a container is moved leaves the source serving, and is named.

Each fault is a real one: a file is cut, a link, a process killed, a port taken.
"""

from __future__ import annotations

import asyncio
import shlex
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from lab.stepping import steps
from quicferry_lab.containers import Settings, Site
from quicferry_lab.containers.site import Load
from quicferry_lab.demo.processes import Child
from quicferry_lab.hosts import Host

from quicferry.relocation import Technique

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

TECHNIQUES = pytest.mark.parametrize(
    "technique", [Technique.COLD, Technique.POST_COPY], ids=lambda each: each.value
)
IMAGES = "run/quicferry/relocations"


@asynccontextmanager
async def serving(
    technique: Technique = Technique.COLD,
    *options: str,
    agent: bool = True,
    engine: str = "runc",
) -> AsyncIterator[tuple[Site, Load]]:
    """Provide hosts whose server has clients at work, and an agent."""
    async with Site(Settings(technique, engine)) as site:
        await site.start_server()
        if agent:
            await site.start_agent(site.destination, *options)
        load = await site.start_load()
        await load.run(0.5)
        yield site, load


async def check_all_is_well(site: Site, load: Load, host: Host, migrations: int = 0) -> None:
    """Check that no client has lost anything, and that nothing is left behind."""
    since = time.monotonic()
    await load.run(1.0)
    for client in await load.stop():
        assert not client.errors
        assert client.requests_failed == 0
        assert client.reconnects == 0
        assert client.migrations == migrations
        assert client.samples[-1].started + client.samples[-1].seconds > since
    await site.ask("/", of=host)
    for each in (site.source, site.destination):
        await nothing_is_left(each)


async def nothing_is_left(host: Host) -> None:
    """Wait until no image and no CRIU is left on a host."""
    gone = f'until test -z "$(ls /{IMAGES} 2>/dev/null)" && ! pgrep -x criu; do sleep 0.1; done'
    await host.run(["timeout", "30", "sh", "-c", gone])


async def no_copy_is_left(site: Site) -> None:
    """Wait until no container is left at the destination."""
    gone = f'until test -z "$({shlex.join(site.deployment.containers)})"; do sleep 0.1; done'
    await site.destination.run(["timeout", "30", "sh", "-c", gone])


def rolled_back(report: dict[str, Any], step: str, *words: str) -> None:
    assert report["outcome"] == "rolled-back"
    assert report["failed_phase"] == step, report
    assert all(word in report["reason"] for word in words), report["reason"]


def image(host: Host, pattern: str) -> Path:
    (found,) = (host.root / IMAGES).glob(f"*/images/{pattern}")
    return found


async def test_a_truncated_image() -> None:
    async with serving() as (site, load), steps(site) as moving:
        await moving.until("thaw")
        pages = image(site.destination, "final/pages-1.img")
        with pages.open("r+b") as file:
            file.truncate(pages.stat().st_size // 2)
        rolled_back(await moving.report(), "thaw", "the image final/pages-1.img has", "bytes")
        await check_all_is_well(site, load, site.source)


async def test_too_little_memory_at_the_destination() -> None:
    async with serving(Technique.COLD, "--room", "10") as (site, load):
        report = await site.migrate(site.source, site.destination)
        rolled_back(report, "offer", "10 MB in memory", "more room")
        await check_all_is_well(site, load, site.source)


async def test_memory_that_is_full_in_the_middle() -> None:
    async with serving(Technique.COLD, "--room", "100") as (site, load), steps(site) as moving:
        await moving.until("imminent")
        await site.ask("/memory/100", of=site.source, post=True)
        rolled_back(await moving.report(), "freeze", "No space left", "more memory")
        await check_all_is_well(site, load, site.source)


@TECHNIQUES
async def test_the_link_is_cut_before_all_has_arrived(technique: Technique) -> None:
    async with serving(technique) as (site, load), steps(site) as moving:
        await moving.until("transfer")
        await site.between.cut()
        report = await moving.report()
        rolled_back(report, "transfer")
        await site.between.restore()
        await check_all_is_well(site, load, site.source)


async def test_there_is_no_criu_at_the_source() -> None:
    async with serving() as (site, load):
        (site.source.root / "usr/sbin/criu").unlink()
        report = await site.migrate(site.source, site.destination)
        rolled_back(report, "offer", "CRIU")
        await check_all_is_well(site, load, site.source)


async def test_criu_disappears_at_the_destination() -> None:
    async with serving() as (site, load), steps(site) as moving:
        await moving.until("freeze")
        (site.destination.root / "usr/sbin/criu").unlink()
        rolled_back(await moving.report(), "thaw", "criu")
        await check_all_is_well(site, load, site.source)


@TECHNIQUES
async def test_the_restore_fails(technique: Technique) -> None:
    async with serving(technique) as (site, load), steps(site) as moving:
        await moving.until("freeze")
        occupy = "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.bind(('', 4433))"
        occupier = await site.destination.start(
            ["python3", "-c", f"{occupy}; print('there', flush=True); input()"],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert occupier.stdout is not None
        await occupier.stdout.readline()
        report = await moving.report()
        rolled_back(report, "thaw", "runc restore", "Address already in use")
        occupier.kill()
        await occupier.wait()
        await check_all_is_well(site, load, site.source)


async def test_the_container_is_killed_after_the_dump() -> None:
    async with serving() as (site, load), steps(site) as moving:
        await moving.until("thaw")
        await site.source.run(["runc", "kill", "site", "KILL"])
        report = await moving.report()
        assert report["outcome"] == "committed", report
        await check_all_is_well(site, load, site.destination, migrations=1)


async def test_the_copy_dies_before_the_commitment() -> None:
    async with serving() as (site, load), steps(site) as moving:
        await moving.until("commit")
        await site.destination.run(["runc", "delete", "--force", "site"])
        rolled_back(await moving.report(), "commit", "does not answer any more")
        await check_all_is_well(site, load, site.source)


async def test_an_address_that_is_not_the_destinations() -> None:
    async with serving() as (site, load):
        report = await site.migrate(
            site.source, site.destination, "--address", f"{site.client.address}:4433"
        )
        rolled_back(report, "offer", str(site.client.address))
        await check_all_is_well(site, load, site.source)


async def test_a_second_agent_leaves_the_copy_of_the_first_alone() -> None:
    async with serving() as (site, load), steps(site) as moving:
        await moving.until("commit")
        second = site.agent_command(site.destination)
        done = await site.destination.attempt(second)
        assert done.returncode == 1
        assert "in use" in done.stderr
        report = await moving.report()
        assert report["outcome"] == "committed", report
        await check_all_is_well(site, load, site.destination, migrations=1)


@TECHNIQUES
@pytest.mark.parametrize("step", ["imminent", "freeze", "transfer", "thaw", "commit"])
async def test_whoever_moves_it_is_killed(technique: Technique, step: str) -> None:
    # At the last step the agent waits for the word that nobody gives, until the lease is over.
    async with serving(technique) as (site, load), steps(site, "--lease", "10") as moving:
        await moving.until(step)
        moving.process.kill()
        await moving.process.wait()
        await check_all_is_well(site, load, site.source)
        await no_copy_is_left(site)


async def killed(agent: Child) -> None:
    """Kill an agent, and wait until it is gone: in its last moment it may hear of a commit."""
    agent.kill()
    await agent.end()


@TECHNIQUES
@pytest.mark.parametrize("step", ["freeze", "thaw", "commit"])
async def test_the_agent_is_killed(technique: Technique, step: str) -> None:
    async with serving(technique) as (site, load), steps(site) as moving:
        await moving.until(step)
        await killed(site.agents[site.destination])
        reporting = asyncio.create_task(moving.report())
        await site.start_agent(site.destination)  # it removes the copy that nobody waits for
        report = await reporting
        assert report["outcome"] == "rolled-back", report
        await check_all_is_well(site, load, site.source)
        await no_copy_is_left(site)


async def test_podman_goes_on_from_its_own_checkpoint() -> None:
    async with serving(engine="podman") as (site, load), steps(site) as moving:
        await moving.until("thaw")
        running = ["podman", "ps", "--quiet"]
        assert (await site.source.run(running)).stdout == ""
        await killed(site.agents[site.destination])
        report = await moving.report()
        assert report["outcome"] == "rolled-back", report
        await site.start_agent(site.destination)  # it removes the images that nobody waits for
        assert (await site.source.run(running)).stdout != ""
        await check_all_is_well(site, load, site.source)
        await no_copy_is_left(site)
