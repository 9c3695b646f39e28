"""Containers are moved between hosts under load, and no client loses anything."""

from __future__ import annotations

import pytest
from quicferry_lab.containers import Settings, Site, Trial, run_trial
from quicferry_lab.containers.settings import EDGE, Whereabouts
from quicferry_lab.hosts import Lab, PathSpec
from quicferry_lab.patience import patient

from quicferry.protocol import MigrationProtocol, Policy
from quicferry.relocation import Compression, Technique
from quicferry.relocation.container.engines import Podman

pytestmark = [pytest.mark.lab, pytest.mark.timeout(300)]

PROTOCOLS = [pytest.param(protocol, id=protocol.name) for protocol in MigrationProtocol]
BY_PODMAN = pytest.mark.parametrize(
    "technique",
    [technique for technique in Technique if technique in Podman.techniques],
    ids=lambda each: each.value,
)
COPIED_AHEAD = [technique for technique in Technique if technique.copies_before]
NARROW = PathSpec(rtt_ms=EDGE.rtt_ms, rate_mbit=0.5)
LOSSY = PathSpec(rtt_ms=EDGE.rtt_ms, rate_mbit=EDGE.rate_mbit, loss_percent=1.5, seed=7)


async def moved(settings: Settings) -> Trial:
    """Return a trial in which nothing was lost; skip what this kernel cannot do."""
    await _skip_unless_able(settings.technique, settings.engine)
    trial = await run_trial(settings)
    assert not trial.problems, f"seed {settings.seed}"
    assert len(trial.reports) == 1 + settings.round_trip
    return trial


async def _skip_unless_able(technique: Technique, engine: str) -> None:
    if not technique.copies_before:
        return
    async with Lab() as lab:
        host = await lab.add_host("host")
        command = ["quicferry", "doctor", "--no-test", "--technique", technique.value]
        done = await host.attempt([*command, "--engine", engine], limit=patient(60.0))
    if "soft-dirty" in done.stdout + done.stderr and done.returncode:
        pytest.skip("this kernel tracks no changes of memory (soft-dirty): see make lab-vm")


@pytest.mark.parametrize("technique", list(Technique), ids=lambda each: each.value)
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_there_and_back(technique: Technique, protocol: MigrationProtocol) -> None:
    await moved(Settings(technique=technique, protocol=protocol, round_trip=True))


@pytest.mark.parametrize("technique", list(Technique), ids=lambda each: each.value)
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_with_much_memory(technique: Technique, protocol: MigrationProtocol) -> None:
    trial = await moved(Settings(technique=technique, protocol=protocol, memory=100))
    carried = sum(report["bytes"] for report in trial.reports)
    assert (carried < 50 << 20) is (technique is Technique.POST_COPY)


@pytest.mark.parametrize("technique", list(Technique), ids=lambda each: each.value)
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_with_loss(technique: Technique, protocol: MigrationProtocol) -> None:
    await moved(Settings(technique=technique, protocol=protocol, near=LOSSY, far=LOSSY))


@pytest.mark.parametrize("technique", COPIED_AHEAD, ids=lambda each: each.value)
async def test_copied_ahead(technique: Technique) -> None:
    """As little as an emulated machine can do as well."""
    await moved(Settings(technique=technique, clients=1, memory=10, near=NARROW, far=NARROW))


@pytest.mark.parametrize("policy", [Policy.REACTIVE, Policy.PROACTIVE], ids=lambda each: each.name)
async def test_policies(policy: Policy) -> None:
    await moved(Settings(policy=policy))


async def test_the_clock_of_another_host_does_no_harm() -> None:
    await moved(Settings(clock_offset=86_400, round_trip=True))


async def test_not_compressed() -> None:
    plain = await moved(Settings(compression=Compression.NONE))
    compressed = await moved(Settings())
    assert compressed.reports[0]["bytes"] < plain.reports[0]["bytes"] / 2


@pytest.mark.parametrize(
    "protocol",
    [MigrationProtocol.EXPLICIT, MigrationProtocol.POOL_OF_ADDRESSES],
    ids=lambda each: each.name,
)
async def test_behind_a_nat(protocol: MigrationProtocol) -> None:
    await moved(Settings(protocol=protocol, clients_are=Whereabouts.BEHIND_NAT))


async def test_behind_a_nat_symmetric_reaches_nobody_and_says_so() -> None:
    settings = Settings(
        protocol=MigrationProtocol.SYMMETRIC, clients=1, clients_are=Whereabouts.BEHIND_NAT
    )
    async with Site(settings) as site:
        await site.start_server()
        await site.start_agent(site.destination)
        load = await site.start_load()
        await load.run(settings.before)
        command = [word for word in site.migrate_command(site.destination) if word != "--json"]
        done = await site.source.attempt([*command, "--timeout", "3"])
        assert done.returncode == 0, done.stderr
        assert "1 clients have not been heard of yet" in done.stdout
        assert "behind a NAT" in done.stdout


@BY_PODMAN
@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_podman_there_and_back(technique: Technique, protocol: MigrationProtocol) -> None:
    await moved(Settings(technique, "podman", protocol, round_trip=True))


@BY_PODMAN
async def test_podman_with_much_memory(technique: Technique) -> None:
    trial = await moved(Settings(technique, "podman", memory=100, round_trip=True))
    assert all(report["bytes"] > 100 << 20 for report in trial.reports)


@BY_PODMAN
async def test_podman_with_loss(technique: Technique) -> None:
    await moved(Settings(technique, "podman", near=LOSSY, far=LOSSY))
