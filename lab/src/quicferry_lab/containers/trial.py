"""One trial: a server in a container is moved under load, and everything is checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from quicferry.relocation import Outcome
from quicferry_lab.containers.settings import Settings
from quicferry_lab.containers.site import Site
from quicferry_lab.demo.results import ClientReport

WORK = ("freeze", "transfer", "thaw", "switch")
"""The steps in which the container is written, carried and restored, until its server answers."""


@dataclass(frozen=True)
class Trial:
    """What a trial has shown.

    Attributes:
        settings: Of the trial.
        reports: Of each relocation, as `quicferry migrate --json` prints it.
        clients: What each client has found.
        problems: What is not as it should be, in words; empty if nothing is wrong.
    """

    settings: Settings
    reports: tuple[dict[str, Any], ...]
    clients: tuple[ClientReport, ...]
    problems: tuple[str, ...]

    @property
    def work(self) -> float:
        """Seconds of dump, transfer and restore, until the server answers; the longest."""
        return max(sum(float(report["phases"][step]) for step in WORK) for report in self.reports)

    @property
    def silence(self) -> float:
        """Seconds from the freeze until the server lived again; the longest."""
        return max(float(report["silence"]) for report in self.reports)

    @property
    def gap(self) -> float:
        """The longest time that a client had to wait for a byte, in seconds."""
        return max(client.longest_gap.seconds for client in self.clients)

    @property
    def beyond(self) -> float:
        """Seconds that a client waited beyond the silence of the server."""
        return self.gap - self.silence


async def run_trial(settings: Settings) -> Trial:
    """Move the server, and back if that is asked for, while clients are at work.

    Raises:
        LabError: If the laboratory has not been set up.
        SiteError: If something of the trial's own fails.
    """
    async with Site(settings) as site:
        await site.start_server()
        here, there = site.source, site.destination
        await site.start_agent(site.destination)
        if settings.round_trip:
            await site.start_agent(site.source)
        if settings.memory:
            await site.ask(f"/memory/{settings.memory}", of=site.source, post=True)
        kept = await site.ask("/memory", of=site.source)
        load = await site.start_load()
        reports = []
        for _ in range(1 + settings.round_trip):
            await load.run(settings.before)
            report = await site.migrate(here, there)
            reports.append(report)
            if report["outcome"] != Outcome.COMMITTED.value:
                break
            load.probe()
            here, there = there, here
        await load.run(settings.before)
        clients = await load.stop()
        problems = [problem for client in clients for problem in _problems(client, len(reports))]
        for report in reports:
            if report["outcome"] != Outcome.COMMITTED.value:
                problems.append(f"{report['outcome']}: {report['reason']}")
            if report["lost"]:
                problems.append(f"lost: {report['lost']}")
        if await site.ask("/memory", of=here) != kept:
            problems.append("the application's memory is not what it was")
        return Trial(settings, tuple(reports), tuple(clients), tuple(problems))


def _problems(client: ClientReport, relocations: int) -> list[str]:
    found = [f"client {client.id}: {error}" for error in client.errors]
    if client.requests_failed:
        found.append(f"client {client.id}: {client.requests_failed} requests have failed")
    if client.migrations < relocations:
        found.append(f"client {client.id}: {client.migrations} of {relocations} migrations")
    if client.reconnects or not client.requests_ok:
        found.append(f"client {client.id}: {client.status}, connected again")
    return found
