from __future__ import annotations

import asyncio

import pytest
from loopback import (
    Filter,
    at,
    free_port,
    http_client,
    served,
    server_configuration,
    server_side,
)
from relocating import EXPLICIT, HOSTS, SYNCHRONIZED, one_deaf_client, relocate, under_load

from quicferry import (
    ConnectionLost,
    RelocationError,
    Unready,
)
from quicferry.protocol import MigrationCompleted, MigrationReady
from quicferry.server import Phase, PhaseChanged


async def test_deadline_and_abort() -> None:
    async with (
        served(port=free_port(*HOSTS)) as server,
        one_deaf_client(server) as (client, deaf, name, link),
    ):
        source, destination = server.address, at("127.0.0.2", server.address.port)
        preparation = await server.imminent(EXPLICIT, destination, deadline=0.05)
        assert not preparation.is_ready
        assert preparation.unready == (name,)
        assert server.phase is Phase.OVERDUE
        assert server.status()["unready"] == [name]
        with pytest.raises(RelocationError, match=f"NOT_READY.*{name}.*aborted"):
            await server.switch(destination)
        assert (server.phase, server.address) == (Phase.SERVING, source)
        link.mend()
        for each in (client, deaf):
            assert (await each.request("POST", "/", body=b"as ever")).body == b"as ever"
        await relocate(server, destination, EXPLICIT, destination)


async def test_going_without() -> None:
    async with (
        served(port=free_port(*HOSTS)) as server,
        one_deaf_client(server) as (client, deaf, name, _),
    ):
        destination = at("127.0.0.2", server.address.port)
        announcing = asyncio.create_task(server.imminent(EXPLICIT, destination, deadline=0.05))
        await asyncio.sleep(0)
        relocation = await server.switch(destination, unready=Unready.LEAVE)  # waits for that
        assert announcing.done()
        assert relocation.closed == (name,)
        assert (await deaf.wait_lost()).reason == "server migrated"
        assert (await server.wait_completed(10)).is_complete
        assert (await client.request("POST", "/", body=b"moved")).body == b"moved"


async def test_late_readiness_counts() -> None:
    async with (
        served(port=free_port(*HOSTS)) as server,
        one_deaf_client(server) as (_, _, _, link),
    ):
        destination = at("127.0.0.2", server.address.port)
        assert not (await server.imminent(EXPLICIT, destination, deadline=0.05)).is_ready
        events = server.events()
        link.mend()
        async for event in events:
            if event.event == PhaseChanged(Phase.READY):
                break
        assert (await server.switch(destination)).closed == ()
        assert (await server.wait_completed(10)).is_complete


async def test_abort_leaves_no_trace() -> None:
    async with served(port=free_port(*HOSTS)) as server, http_client(server) as client:
        await server_side(server, client)
        async with under_load(client):
            destination = at("127.0.0.2", server.address.port)
            await server.imminent(EXPLICIT, destination)
            await server.abort()
            assert server.phase is Phase.SERVING
            await client.request("POST", "/", body=b"as ever")
        await relocate(server, destination, EXPLICIT, destination)


async def test_who_waits_hears_of_the_abort() -> None:
    async with (
        served() as server,
        one_deaf_client(server) as (_, _, _, link),
    ):
        announcing = asyncio.create_task(server.imminent(SYNCHRONIZED))
        await asyncio.sleep(0)
        moving = asyncio.create_task(server.switch(at("127.0.0.2", server.address.port)))
        await asyncio.sleep(0)
        await server.abort()
        for task in (announcing, moving):
            with pytest.raises(RelocationError, match="ABORTED"):
                await task
        link.mend()


async def test_cancelling_who_waits_changes_nothing() -> None:
    async with (
        served(port=free_port(*HOSTS)) as server,
        one_deaf_client(server) as (_, _, _, link),
    ):
        announcing = asyncio.create_task(server.imminent(SYNCHRONIZED))
        await asyncio.sleep(0)
        announcing.cancel()
        await asyncio.wait([announcing])
        assert server.phase is Phase.PREPARING
        link.mend()
        await server.switch(at("127.0.0.2", server.address.port))
        assert (await server.wait_completed(10)).is_complete


async def test_a_client_that_disappears_after_the_switch_is_named() -> None:
    link = Filter()
    configuration = server_configuration(idle_timeout=0.5)
    async with (
        served(port=free_port(*HOSTS), configuration=configuration) as server,
        http_client(server, wrap_transport=link) as client,
    ):
        name = (await server_side(server, client)).connection.stable_id
        await server.imminent()
        link.cut()
        await server.switch(at("127.0.0.2", server.address.port))
        completion = await server.wait_completed(0.01)
        assert (completion.is_complete, completion.pending) == (False, (name,))
        with pytest.raises(RelocationError, match=f"MIGRATION_ALREADY_IN_PROGRESS.*{name}.*leave"):
            await server.imminent()
        completion = await server.wait_completed()
        assert (completion.is_complete, completion.lost) == (True, (name,))
        await server.imminent()


async def test_a_client_that_never_follows_can_be_left_behind_at_the_next_move() -> None:
    link = Filter()
    port = free_port(*HOSTS)
    second, third = at("127.0.0.2", port), at("127.0.0.3", port)
    async with (
        served(port=port) as server,
        http_client(server) as client,
        http_client(server, wrap_transport=link) as lost,
    ):
        await server_side(server, client)
        name = (await server_side(server, lost)).connection.stable_id
        await server.imminent(EXPLICIT, second)
        link.cut()
        events = server.events()
        await server.switch(second)
        async for event in events:
            if isinstance(event.event, MigrationCompleted):
                break
        with pytest.raises(RelocationError, match="INVALID_ADDRESS"):
            await server.imminent(EXPLICIT, second, unready=Unready.LEAVE, deadline=0.1)
        assert server.status()["pending"] == [name]  # what makes no sense costs nobody anything
        completing = asyncio.create_task(server.wait_completed())
        preparation = await server.imminent(EXPLICIT, third, unready=Unready.LEAVE, deadline=0.5)
        assert preparation.is_ready
        assert list(preparation.protocols) != [name]
        completion = await completing
        assert (completion.is_complete, completion.lost) == (True, (name,))
        await server.switch(third)
        assert (await client.request("POST", "/", body=b"third")).body == b"third"
        assert (await server.wait_completed(10)).is_complete


async def test_events_of_a_relocation() -> None:
    async with served(port=free_port(*HOSTS)) as server:
        events = server.events()
        async with http_client(server) as client:
            name = (await server_side(server, client)).connection.stable_id
            await relocate(server, at("127.0.0.2", server.address.port), SYNCHRONIZED)
            phases = []
            seen = []
            async for event in events:
                if isinstance(event.event, PhaseChanged):
                    assert event.connection_id is None
                    phases.append(event.event.phase)
                else:
                    assert event.connection_id == name
                    seen.append(event.event)
                if phases[-1:] == [Phase.SERVING]:
                    break
        assert phases == [Phase.PREPARING, Phase.READY, Phase.SWITCHED, Phase.SERVING]
        assert MigrationReady(SYNCHRONIZED) in seen
        assert MigrationCompleted(SYNCHRONIZED, server.address) in seen


async def test_closing_a_server_that_is_being_moved() -> None:
    async with served() as server:
        async with one_deaf_client(server) as (client, _, _, link):
            announcing = asyncio.create_task(server.imminent(SYNCHRONIZED))
            await asyncio.sleep(0)
            events = server.events()
            await asyncio.gather(server.close(), server.close())
            with pytest.raises(RelocationError, match="the server is closed"):
                await announcing
            assert isinstance(await client.wait_lost(), ConnectionLost)
            link.mend()
        assert [event async for event in events] == []
        await server.wait_closed()
        assert [event async for event in server.events()] == []
