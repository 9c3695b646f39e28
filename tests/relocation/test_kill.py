"""Each party of a handover is killed at each of its steps, as real processes.

Whoever owns the connections then goes on serving them: on the same connections, without a request
that fails. And whoever is left says what has happened.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from relocation.agents import Relay
from relocation.parties import DESTINATION, STEPS, Party, Stage, stage

from quicferry import Address

BEFORE_COMMIT = STEPS[: STEPS.index("follow")]


@pytest.fixture
async def cast(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path) as made:
        yield made


async def report_of(migrate: Party) -> dict[str, Any]:
    """Return the report that an orchestrator ends with."""
    await migrate.end()
    assert "outcome" in migrate.said[-1], migrate.account()
    return migrate.said[-1]


async def doubt(cast: Stage) -> Party:
    """Order a handover, and let it come to where nobody knows whether the commitment is received.

    The agent is stopped; what the server sends to it waits in its socket.
    """
    migrate = await cast.rehearse("commit")
    cast.agent.signal(signal.SIGSTOP)
    migrate.press_enter()
    while (await cast.status())["handover"]["state"] != "in-doubt":
        pass
    return migrate


# Nobody is left to ask (first, because it mostly waits)


async def test_nothing_is_in_doubt_for_longer_than_the_lease(tmp_path: Path) -> None:
    """It takes 22 seconds: the lease, and the margin of the agent."""

    async def the_server_gives_up() -> None:
        async with stage(tmp_path / "agent") as cast:
            migrate = await doubt(cast)
            await cast.agent.kill()
            report = await report_of(migrate)
            assert (await migrate.end(), report["outcome"]) == (3, "given-up")
            assert len(report["closed"]) == len(cast.clients)
            assert (await cast.status())["last_handover"] == report
            cast.clients.clear()
            await cast.connect_all()
            await cast.moves_to_another_agent()

    async def the_agent_discards() -> None:
        async with stage(tmp_path / "server") as cast:
            await cast.rehearse("commit")
            await cast.server.kill()
            await cast.agent.hears("Discarded")
            await cast.agent_takes_another_server()

    for folder in ("agent", "server"):
        (tmp_path / folder).mkdir()
    await asyncio.gather(the_server_gives_up(), the_agent_discards())


# The agent


@pytest.mark.parametrize("step", BEFORE_COMMIT)
async def test_without_the_agent_the_server_goes_on(cast: Stage, step: str) -> None:
    migrate = await cast.rehearse(step)
    await cast.agent.kill()
    migrate.press_enter()
    report = await report_of(migrate)
    assert (await migrate.end(), report["outcome"]) == (1, "rolled-back")
    assert report["reason"]
    assert (await cast.status())["last_handover"] == report
    await cast.served_at(cast.source)
    await cast.moves_to_another_agent()


async def test_an_agent_that_owned_the_connections_takes_them_along(cast: Stage) -> None:
    migrate = await cast.rehearse("commit")
    for client in cast.clients:
        client.link.cut()
    migrate.press_enter()
    await migrate.hears("StepWaits", step="follow")
    await cast.agent.kill()
    migrate.press_enter()
    report = await report_of(migrate)
    assert (await migrate.end(), report["outcome"], report["followed"]) == (0, "committed", False)
    assert await cast.server.end() == 0


async def test_another_agent_tells_that_the_connections_are_not_there(cast: Stage) -> None:
    migrate = await doubt(cast)
    await cast.agent.kill()
    await cast.start_agent()
    report = await report_of(migrate)
    assert (await migrate.end(), report["outcome"]) == (1, "rolled-back")
    assert (await cast.status())["last_handover"] == report
    await cast.served_at(cast.source)
    await cast.moves_to_the_agent()


async def test_an_agent_whose_answer_is_lost_with_it(cast: Stage) -> None:
    """Its copies have lived; no other instance has any, so the server goes on.

    Clients that have dealt with a copy know what the server does not, and may be lost with it.
    """
    relay = Relay(Address.parse(cast.agent_address).port)
    async with await asyncio.start_server(relay.run, DESTINATION, 0) as listener:
        agent = f"{DESTINATION}:{listener.sockets[0].getsockname()[1]}"
        migrate = await cast.rehearse("commit", agent=agent)
        relay.loses_answers = True
        migrate.press_enter()
        await cast.agent.hears("Adopted")
        await cast.agent.kill()
        await cast.start_agent()
        relay.cut()
        report = await report_of(migrate)
    assert (await migrate.end(), report["outcome"]) == (1, "rolled-back")
    assert (await cast.status())["last_handover"] == report
    cast.clients.clear()
    await cast.connect_all()
    await cast.served_at(cast.source)


# The server


@pytest.mark.parametrize("step", [step for step in BEFORE_COMMIT if step != "commit"])
async def test_without_the_server_the_agent_is_free_again(cast: Stage, step: str) -> None:
    migrate = await cast.rehearse(step)
    await cast.server.kill()
    assert await migrate.end() == 3
    assert "the server has ended during the handover" in migrate.errors
    if step != "offer":
        await cast.agent.hears("Discarded")
    await cast.agent_takes_another_server()


async def test_a_server_that_had_let_the_connections_go_is_not_missed(cast: Stage) -> None:
    migrate = await cast.rehearse("follow")
    await cast.server.kill()
    assert await migrate.end() == 3
    await cast.served_at(cast.destination)


async def test_the_last_word_of_a_server_counts(cast: Stage) -> None:
    migrate = await doubt(cast)
    await cast.server.kill()
    cast.agent.signal(signal.SIGCONT)
    await cast.agent.hears("Adopted")
    assert await migrate.end() == 3
    await cast.served_at(cast.destination)


# Who orders it


@pytest.mark.parametrize("step", BEFORE_COMMIT)
async def test_a_handover_step_by_step_ends_with_who_ordered_it(cast: Stage, step: str) -> None:
    migrate = await cast.rehearse(step)
    await migrate.kill()
    report = (await cast.idle_status())["last_handover"]
    assert report["outcome"] == "rolled-back"
    assert "has gone away" in report["reason"]
    await cast.served_at(cast.source)
    await cast.moves_to_the_agent()


async def test_what_cannot_be_aborted_any_more_comes_to_its_end(cast: Stage) -> None:
    migrate = await cast.rehearse("follow")
    await migrate.kill()
    await cast.served_at(cast.destination)
    assert await cast.server.end() == 0


async def test_a_commitment_does_not_wait_for_who_ordered_it(cast: Stage) -> None:
    migrate = await doubt(cast)
    await migrate.kill()
    cast.agent.signal(signal.SIGCONT)
    await cast.agent.hears("Adopted")
    await cast.served_at(cast.destination)
    assert await cast.server.end() == 0


async def test_a_handover_at_once_does_not_need_who_ordered_it(cast: Stage) -> None:
    """Not even if that has not read what it was told, which ends the connection in another way."""
    cast.agent.signal(signal.SIGSTOP)
    migrate = await cast.migrate()
    await migrate.hears("StepBegun", step="offer")
    migrate.signal(signal.SIGSTOP)
    cast.agent.signal(signal.SIGCONT)
    await cast.agent.hears("Offered")
    await migrate.kill()
    await cast.agent.hears("Adopted")
    await cast.served_at(cast.destination)
    assert await cast.server.end() == 0
