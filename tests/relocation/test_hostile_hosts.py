"""A host that is trusted with a server has been broken into: what it can do to the others."""

from __future__ import annotations

import asyncio
import itertools
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from loopback import http_client
from relocation.agents import DESTINATION, SOURCE, Hosts, Stop, two_hosts
from relocation.credentials import plain_client

from quicferry import HttpClient
from quicferry.relocation import Identity
from quicferry.relocation.link import messages
from quicferry.relocation.link.channel import Channel
from quicferry.relocation.link.listener import listen
from quicferry.relocation.link.messages import KINDS
from quicferry.relocation.steps.orchestration import MOST_ANSWERS
from quicferry.relocation.steps.report import Outcome, RelocationReport, Step

SIZE = 6 << 20
EMPTY_ARRAYS = b"\xdd" + (SIZE).to_bytes(4, "big") + b"\x90" * SIZE
NUMBERS = {kind: number for number, kind in KINDS.items()}
LITTLE = 2 << 20


@asynccontextmanager
async def agent_that_answers(
    hosts: Hosts, answers: Callable[[bytes], Iterator[bytes]]
) -> AsyncIterator[int]:
    """Provide the port of an agent of the destination that answers an offer like this."""

    async def serve(channel: Channel) -> None:
        offer = messages.decode(await channel.receive())
        for answer in answers(offer.handover):
            await channel.send(answer)
        await channel.receive()

    identity = Identity.load(hosts.identities[DESTINATION])
    listener = await listen(DESTINATION, 0, identity, serve)
    try:
        yield listener.address.port
    finally:
        await listener.close()


async def stays(hosts: Hosts, client: HttpClient, report: RelocationReport) -> None:
    assert report.outcome is Outcome.ROLLED_BACK
    assert (await client.request("POST", "/echo", body=b"on")).body == b"on"
    report = await hosts.hand_over(follow=0.0)
    assert report.outcome is Outcome.COMMITTED, report.reason
    assert (await client.request("POST", "/echo", body=b"on")).body == b"on"


@pytest.mark.parametrize("kind", list(KINDS.values()), ids=lambda kind: kind.__name__)
async def test_an_agent_that_answers_with_millions_of_arrays(
    tmp_path: Path, kind: type[messages.Message]
) -> None:
    """A live source must not build them, and not even wait for them."""
    hostile = bytes([NUMBERS[kind]]) + EMPTY_ARRAYS
    async with two_hosts(tmp_path) as hosts, http_client(hosts.server) as client:
        async with agent_that_answers(hosts, lambda _: iter([hostile])) as port:
            tracemalloc.start()
            try:
                before = tracemalloc.get_traced_memory()[0]
                report = await hosts.hand_over(port=port)
                assert tracemalloc.get_traced_memory()[1] - before < 2 * SIZE + LITTLE
            finally:
                tracemalloc.stop()
        assert "not accepted" in report.reason or "at most" in report.reason
        await stays(hosts, client, report)


async def test_an_agent_that_says_no_end_of_things(tmp_path: Path) -> None:
    def held(handover: bytes) -> Iterator[bytes]:
        answer = messages.encode(messages.Held(handover))
        return itertools.repeat(answer, 2 * MOST_ANSWERS)

    async with two_hosts(tmp_path) as hosts, http_client(hosts.server) as client:
        async with agent_that_answers(hosts, held) as port:
            report = await hosts.hand_over(port=port)
        assert f"more than {MOST_ANSWERS} things" in report.reason
        await stays(hosts, client, report)


LARGE = [*messages.CARRIES_CONNECTIONS, *messages.CARRIES_CONTAINER]
ANSWERS = [kind for number, kind in KINDS.items() if number >= 0x80]


@pytest.mark.parametrize("kind", [*LARGE, *ANSWERS], ids=lambda kind: kind.__name__)
async def test_a_source_without_an_offer_cannot_fill_the_memory(
    tmp_path: Path, kind: type[messages.Message]
) -> None:
    """The agent does not wait for the rest of a message that it will not look at."""
    async with two_hosts(tmp_path) as hosts, http_client(hosts.server) as client:
        context = plain_client(hosts.identities[SOURCE])
        reader, writer = await asyncio.open_connection(
            DESTINATION, hosts.agent.address.port, ssl=context
        )
        writer.write((1 << 20).to_bytes(4, "big") + bytes([NUMBERS[kind]]))
        assert await reader.read() == b""
        writer.close()
        report = await hosts.hand_over(follow=0.0)
        assert report.outcome is Outcome.COMMITTED, report.reason
        assert (await client.request("POST", "/echo", body=b"on")).body == b"on"


# What it may use


async def test_a_source_that_does_not_begin_is_not_waited_for(tmp_path: Path) -> None:
    """The link is sound, and nothing comes: the agent has a server's address taken."""
    gate = Stop(Step.FREEZE)
    async with two_hosts(tmp_path, patience=0.2) as hosts, http_client(hosts.server) as client:
        handing_over = asyncio.create_task(hosts.handover(gate).run())
        await gate.reached.wait()
        report = await handing_over
        assert "has not begun within 0.2 s" in report.reason
        assert "--patience" in report.reason
        await stays(hosts, client, report)


async def test_a_source_that_brings_more_connections_than_may_come(tmp_path: Path) -> None:
    """Those that have connected since the offer count as well."""
    gate = Stop(Step.IMMINENT)
    async with two_hosts(tmp_path, capacity=1) as hosts, http_client(hosts.server) as client:
        handing_over = asyncio.create_task(hosts.handover(gate).run())
        await gate.reached.wait()
        async with http_client(hosts.server) as another:
            gate.go.set()
            report = await handing_over
            assert "more connections have come than the agent's 1" in report.reason
            assert "--capacity" in report.reason
            assert (await another.request("POST", "/echo", body=b"on")).body == b"on"
        assert report.outcome is Outcome.ROLLED_BACK
        assert (await client.request("POST", "/echo", body=b"on")).body == b"on"


async def test_a_source_that_brings_more_than_there_is_room_for(tmp_path: Path) -> None:
    async with two_hosts(tmp_path, room=1000) as hosts, http_client(hosts.server) as client:
        report = await hosts.hand_over()
        assert "--room" in report.reason
        assert report.outcome is Outcome.ROLLED_BACK
        assert (await client.request("POST", "/echo", body=b"on")).body == b"on"
