"""A server is handed over to an agent, through an authenticated channel."""

from __future__ import annotations

import asyncio
import itertools
import pkgutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from loopback import (
    Filter,
    at,
    client_configuration,
    demo_app,
    free_port,
    http_client,
    respond,
    served,
    server_configuration,
    server_side,
)
from relocating import OlderClient
from relocation.agents import (
    APPLICATION,
    DESTINATION,
    SOURCE,
    Hosts,
    Relay,
    Stop,
    agent_at,
    two_hosts,
)
from traces import names, read_trace

from quicferry import ClientMigration, HttpClient, Server, ServerMigration
from quicferry.io import DatagramLink, QlogDirectory
from quicferry.protocol import MigrationProtocol
from quicferry.relocation import DestinationStarts, Discarded, Identity, Offered, make_identities
from quicferry.relocation.handover.technique import Handover, HandoverPlan
from quicferry.relocation.ownership import lease
from quicferry.relocation.ownership.destination import LEASE_MARGIN
from quicferry.relocation.ownership.source import LEASE
from quicferry.relocation.steps.report import Outcome, RelocationReport, Step, StepEnded
from quicferry.server import Phase, Unready
from quicferry.transport import NetworkAddress, SnapshotError

HOOKS = ("quicferry.export", "quicferry.import")


STEPS = [step for step in Step if step is not Step.PRE_COPY]
"""Those of a handover."""


@pytest.mark.parametrize("protocol", list(MigrationProtocol), ids=lambda each: each.name)
async def test_clients_go_on_at_the_agent(tmp_path: Path, protocol: MigrationProtocol) -> None:
    configuration = client_configuration(ClientMigration(protocols=protocol))
    async with (
        two_hosts(tmp_path) as hosts,
        http_client(hosts.server, configuration=configuration) as client,
    ):
        await server_side(hosts.server, client)
        report = await hosts.hand_over(protocol=protocol)
        assert report.outcome is Outcome.COMMITTED, report.reason
        assert hosts.agent.server is not None
        assert report.connections == (*hosts.agent.server.connections,)
        assert hosts.server.phase is Phase.DEPARTED
        assert (await client.request("POST", "/echo", body=b"on")).body == b"on"
        assert client.server_address == hosts.destination
        assert list(report.steps) == STEPS
        assert [e.step for e in hosts.told if isinstance(e, StepEnded)] == STEPS


async def goes_on_at_the_source(hosts: Hosts, client: HttpClient, report: RelocationReport) -> None:
    """Check that a handover has changed nothing."""
    assert report.outcome is Outcome.ROLLED_BACK
    assert hosts.server.phase is Phase.SERVING
    assert (await client.request("POST", "/echo", body=b"on")).body == b"on"
    assert client.server_address == hosts.server.address
    async with http_client(hosts.server) as newcomer:
        assert (await newcomer.request("POST", "/echo", body=b"new")).body == b"new"


async def moves(hosts: Hosts, client: HttpClient) -> None:
    """Check that a handover succeeds."""
    report = await hosts.hand_over(follow=0.0)
    assert report.outcome is Outcome.COMMITTED, report.reason
    assert (await client.request("POST", "/echo", body=b"there")).body == b"there"
    assert client.server_address == hosts.destination


# Offers that are refused


@pytest.mark.parametrize(
    ("agent", "reason"),
    [
        ({"capacity": 0}, "1 connections are more than the agent's 0"),
        ({"application": "other:app"}, "start an agent with the same application"),
        (
            {"configuration": server_configuration(connection_id_length=10)},
            "use the same connection_id_length",
        ),
        (
            {"configuration": server_configuration(ServerMigration(MigrationProtocol.EXPLICIT))},
            "does not offer all migration protocols",
        ),
        ({"configuration": server_configuration(None)}, "does not offer all migration protocols"),
    ],
    ids=["capacity", "application", "connection IDs", "protocols", "migration off"],
)
async def test_an_agent_refuses_what_it_cannot_take(
    tmp_path: Path, agent: dict[str, Any], reason: str
) -> None:
    async with two_hosts(tmp_path, **agent) as hosts, http_client(hosts.server) as client:
        await server_side(hosts.server, client)
        report = await hosts.hand_over()
        assert reason in report.reason
        assert report.failed_step is Step.OFFER
        await goes_on_at_the_source(hosts, client, report)


async def test_an_agent_refuses_snapshots_of_another_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_hosts(tmp_path) as hosts, http_client(hosts.server) as client:
        with monkeypatch.context() as patch:
            patch.setattr("quicferry.relocation.handover.technique.FORMAT_VERSION", 99)
            report = await hosts.hand_over()
        assert "snapshots of version 99" in report.reason
        await goes_on_at_the_source(hosts, client, report)
        await moves(hosts, client)


async def test_an_address_that_is_in_use_is_refused(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as hosts, http_client(hosts.server) as client:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.bind((DESTINATION, hosts.destination.port))
            report = await hosts.hand_over()
        assert f"cannot bind {hosts.destination}" in report.reason
        await goes_on_at_the_source(hosts, client, report)
        await moves(hosts, client)


async def test_an_agent_that_is_busy_refuses(tmp_path: Path) -> None:
    stop = Stop(Step.FREEZE)
    async with two_hosts(tmp_path) as hosts, http_client(hosts.server) as client:
        first = asyncio.create_task(hosts.handover(stop, follow=0.0).run())
        await stop.reached.wait()
        async with served() as other:
            identity = Identity.load(hosts.identities[SOURCE])
            plan = HandoverPlan(
                DESTINATION, hosts.agent.address.port, at(DESTINATION, other.address.port)
            )
            report = await Handover(other, APPLICATION, plan, identity).run()
            assert "busy with another handover" in report.reason
            stop.go.set()
            assert (await first).outcome is Outcome.COMMITTED
            report = await Handover(other, APPLICATION, plan, identity).run()
            assert "serves" in report.reason
            assert report.outcome is Outcome.ROLLED_BACK
        assert (await client.request("POST", "/echo", body=b"on")).body == b"on"


async def test_without_an_agent_nothing_happens(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as hosts, http_client(hosts.server) as client:
        report = await hosts.hand_over(port=free_port(DESTINATION))
        assert "quicferry agent run" in report.reason
        await goes_on_at_the_source(hosts, client, report)


# What fails later

BEFORE_COMMIT = [step for step in STEPS if step not in (Step.OFFER, Step.SWITCH, Step.FOLLOW)]


@pytest.mark.parametrize("step", BEFORE_COMMIT, ids=lambda step: step.value)
async def test_an_agent_that_is_stopped_lets_the_server_go_on(tmp_path: Path, step: Step) -> None:
    stop = Stop(step)
    async with AsyncExitStack() as agents, two_hosts(tmp_path) as hosts:
        agent = await agents.enter_async_context(
            agent_at(DESTINATION, hosts.server.address.port, hosts.identities)
        )
        async with http_client(hosts.server) as client:
            running = asyncio.create_task(hosts.handover(stop, port=agent.address.port).run())
            await stop.reached.wait()
            answer = asyncio.create_task(client.request("POST", "/echo", body=b"meanwhile"))
            await agents.aclose()
            report = await running
            assert (await answer).body == b"meanwhile"
            await goes_on_at_the_source(hosts, client, report)
            await moves(hosts, client)


@pytest.mark.parametrize("step", BEFORE_COMMIT, ids=lambda step: step.value)
async def test_a_handover_can_be_aborted_until_the_commitment(tmp_path: Path, step: Step) -> None:
    stop = Stop(step)
    async with two_hosts(tmp_path) as hosts, http_client(hosts.server) as client:
        handover = hosts.handover(stop)
        events = hosts.agent.events()
        running = asyncio.create_task(handover.run())
        await stop.reached.wait()
        answer = asyncio.create_task(client.request("POST", "/echo", body=b"meanwhile"))
        stop.go.set()  # at the same moment
        assert handover.abort("a test")
        report = await running
        assert report.reason == "a test"
        assert (await answer).body == b"meanwhile"
        await goes_on_at_the_source(hosts, client, report)
        assert [type(await anext(events)) for _ in range(2)] == [Offered, Discarded]
        await moves(hosts, client)


async def test_after_the_commitment_it_cannot_be_aborted(tmp_path: Path) -> None:
    stop = Stop(Step.FOLLOW)
    async with two_hosts(tmp_path) as hosts, http_client(hosts.server):
        handover = hosts.handover(stop, follow=0.0)
        running = asyncio.create_task(handover.run())
        await stop.reached.wait()
        assert not handover.abort("too late")
        stop.go.set()
        assert (await running).outcome is Outcome.COMMITTED


@pytest.mark.parametrize("end", ["freeze", "adopt"])
async def test_one_connection_that_cannot_come_keeps_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    target = {
        "freeze": "quicferry.server.departure.freeze",
        "adopt": "quicferry.io.ConnectionRouter.adopt",
    }[end]
    really = pkgutil.resolve_name(target)
    calls = itertools.count()

    def fails_at_the_second(*arguments: Any, **keywords: Any) -> Any:
        if next(calls) == 1:
            raise SnapshotError("it does not fit")
        return really(*arguments, **keywords)

    async with (
        two_hosts(tmp_path) as hosts,
        http_client(hosts.server) as client,
        http_client(hosts.server) as other,
    ):
        await server_side(hosts.server, client)
        await server_side(hosts.server, other)
        with monkeypatch.context() as patch:
            patch.setattr(target, fails_at_the_second)
            report = await hosts.hand_over()
        assert "it does not fit" in report.reason
        await goes_on_at_the_source(hosts, other, report)
        await goes_on_at_the_source(hosts, client, report)
        await moves(hosts, client)


# The application's state


def counting(
    start: int, fails: Callable[[], bool] = lambda: False, hooks: tuple[str, ...] = HOOKS
) -> Any:
    """Return an application that counts its requests, and carries the count."""
    count = start

    async def export() -> bytes:
        if fails():
            raise ValueError("a secret")
        return b"%d" % count

    async def import_(data: bytes) -> None:
        nonlocal count
        if fails():
            raise ValueError("a secret")
        count = int(data)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal count
        if scope["type"] == "lifespan":
            available = dict(zip(HOOKS, (export, import_), strict=True))
            scope["state"].update({name: available[name] for name in hooks})
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        elif scope["path"] == "/count":
            count += 1
            await respond(send, b"%d" % count)
        else:
            await demo_app(scope, receive, send)

    return app


async def test_the_state_of_the_application_is_carried(tmp_path: Path) -> None:
    async with (
        two_hosts(tmp_path, counting(0), counting(100)) as hosts,
        http_client(hosts.server) as client,
    ):
        assert (await client.request("GET", "/count")).body == b"1"
        await moves(hosts, client)
        assert (await client.request("GET", "/count")).body == b"2"


class Starting:
    """An application that starts when it may.

    Attributes:
        begun: Set when it is asked to.
        may_start: Lets it.
        cancelled: How often it was given up.
    """

    def __init__(self) -> None:
        self.begun, self.may_start = asyncio.Event(), asyncio.Event()
        self.cancelled = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            await demo_app(scope, receive, send)
            return
        self.begun.set()
        try:
            await self.may_start.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        for step in ("startup", "shutdown"):
            await receive()
            await send({"type": f"lifespan.{step}.complete"})


async def test_an_application_that_starts_slowly_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quicferry.relocation.steps.orchestration.PATIENCE", 1.0)
    app = Starting()
    async with (
        two_hosts(tmp_path, demo_app, app, startup_timeout=20.0) as hosts,
        http_client(hosts.server) as client,
    ):
        await server_side(hosts.server, client)
        running = asyncio.create_task(hosts.hand_over())
        await app.begun.wait()
        await asyncio.sleep(1.5)  # longer than an agent may be silent
        assert not running.done()
        app.may_start.set()
        report = await running
        assert report.outcome is Outcome.COMMITTED, report.reason
        assert DestinationStarts(20.0) in hosts.told


async def test_an_application_that_does_not_start_is_named(tmp_path: Path) -> None:
    app = Starting()
    async with two_hosts(tmp_path, demo_app, app, startup_timeout=0.1) as hosts:
        report = await hosts.hand_over()
        assert (report.outcome, report.failed_step) == (Outcome.ROLLED_BACK, Step.OFFER)
        assert "the destination refused: the application does not start within 0.1 s" in (
            report.reason
        )
        assert "--startup-timeout" in report.reason


async def test_a_start_is_given_up_with_the_handover(tmp_path: Path) -> None:
    app = Starting()
    async with two_hosts(tmp_path, demo_app, app) as hosts:
        handover = hosts.handover()
        running = asyncio.create_task(handover.run())
        await app.begun.wait()
        assert handover.abort("changed our mind")
        assert (await running).outcome is Outcome.ROLLED_BACK
        app.may_start.set()
        report = await hosts.hand_over()
        assert report.outcome is Outcome.COMMITTED, report.reason
        assert app.cancelled == 1


@pytest.mark.parametrize(
    ("source", "destination", "reason"),
    [
        (counting(0), demo_app, "has no quicferry.import"),
        (demo_app, counting(0), "the one at the source has none"),
        (counting(0, lambda: True), counting(0), "'quicferry.export' failed with ValueError"),
        (counting(0), counting(0, lambda: True), "'quicferry.import' failed with ValueError"),
    ],
    ids=["destination has none", "source has none", "export fails", "import fails"],
)
async def test_state_that_cannot_be_carried_keeps_the_server(
    tmp_path: Path, source: Any, destination: Any, reason: str
) -> None:
    async with (
        two_hosts(tmp_path, source, destination) as hosts,
        http_client(hosts.server) as client,
    ):
        report = await hosts.hand_over()
        assert reason in report.reason
        assert "secret" not in report.reason
        await goes_on_at_the_source(hosts, client, report)


# The network


class Detour:
    """A client's link on which what is sent can be kept back."""

    def __init__(self) -> None:
        self.keeps = False
        self.drops = False
        self._kept: list[tuple[bytes, NetworkAddress]] = []

    def __call__(self, inner: DatagramLink) -> DatagramLink:
        self._inner = inner
        return self

    def send(self, data: bytes, addr: NetworkAddress) -> None:
        if self.keeps:
            self._kept.append((data, addr))
        elif not self.drops:
            self._inner.send(data, addr)

    def deliver(self, data: bytes, addr: NetworkAddress) -> None:
        self._inner.deliver(data, addr)

    def let_go(self) -> None:
        """Send what was kept, and nothing else for now."""
        self.keeps, self.drops = False, True
        for data, addr in self._kept:
            self._inner.send(data, addr)


async def test_what_comes_late_is_forwarded(tmp_path: Path) -> None:
    seen = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/late":
            seen.set()
        await demo_app(scope, receive, send)

    detour = Detour()
    configuration = client_configuration(ClientMigration(MigrationProtocol.SYMMETRIC))
    async with (
        two_hosts(tmp_path, app) as hosts,
        http_client(hosts.server, configuration=configuration, wrap_transport=detour) as client,
    ):
        await server_side(hosts.server, client)
        stop = Stop(Step.FREEZE)
        running = asyncio.create_task(hosts.handover(stop, follow=0.0).run())
        await stop.reached.wait()
        detour.keeps = True
        answer = asyncio.create_task(client.request("GET", "/late"))
        stop.go.set()
        assert (await running).outcome is Outcome.COMMITTED
        assert not seen.is_set()
        detour.let_go()  # to the address where the server was
        await seen.wait()
        detour.drops = False
        assert (await answer).status == 200
        assert client.server_address == hosts.destination


@asynccontextmanager
async def one_deaf_client(server: Server) -> AsyncIterator[tuple[HttpClient, HttpClient, str]]:
    """Provide two clients, and the id of the second, of which nothing is heard from now on."""
    configuration = client_configuration(ClientMigration(MigrationProtocol.EXPLICIT))
    link = Filter()
    async with (
        http_client(server, configuration=configuration) as client,
        http_client(server, configuration=configuration, wrap_transport=link) as deaf,
    ):
        await server_side(server, client)
        name = (await server_side(server, deaf)).connection.stable_id
        link.drops_sent = lambda data, addr: True
        yield client, deaf, name


async def test_connections_that_are_not_ready_keep_the_server(tmp_path: Path) -> None:
    async with (
        two_hosts(tmp_path) as hosts,
        one_deaf_client(hosts.server) as (client, _, name),
    ):
        report = await hosts.hand_over(deadline=0.05)
        assert f"not ready: {name}" in report.reason
        assert report.failed_step is Step.IMMINENT
        await goes_on_at_the_source(hosts, client, report)


@pytest.mark.parametrize("step", [Step.DRAIN, Step.FREEZE, Step.TRANSFER, Step.COMMIT])
async def test_who_cannot_be_told_that_the_server_stays_is_in_the_report(
    tmp_path: Path, step: Step
) -> None:
    """It stands in the way of another address, and of nothing if it is left behind."""
    explicit = client_configuration(ClientMigration(protocols=MigrationProtocol.EXPLICIT))
    async with (
        two_hosts(tmp_path) as hosts,
        http_client(hosts.server, configuration=explicit, create_protocol=OlderClient) as older,
        http_client(hosts.server, configuration=explicit) as client,
    ):
        await server_side(hosts.server, client)
        name = (await server_side(hosts.server, older)).connection.stable_id
        stop = Stop(step)
        handover = hosts.handover(stop)
        running = asyncio.create_task(handover.run())
        await stop.reached.wait()
        assert handover.abort("changed our mind")
        report = await running
        await goes_on_at_the_source(hosts, client, report)
        assert report.announced == {name: str(hosts.destination)}
        assert (await older.request("POST", "/echo", body=b"on")).body == b"on"

        elsewhere = at("127.0.0.3", free_port("127.0.0.3"))
        report = await hosts.hand_over(to=elsewhere)
        assert report.outcome is Outcome.ROLLED_BACK
        for word in ("INVALID_STATE", name, str(hosts.destination), "--unready leave"):
            assert word in report.reason
        report = await hosts.hand_over(to=elsewhere, unready=Unready.LEAVE, follow=0.0)
        assert report.outcome is Outcome.COMMITTED, report.reason
        assert report.closed == (name,)
        assert (await client.request("POST", "/echo", body=b"there")).body == b"there"
        assert client.server_address == elsewhere


async def test_connections_that_are_not_ready_can_be_left(tmp_path: Path) -> None:
    async with (
        two_hosts(tmp_path) as hosts,
        one_deaf_client(hosts.server) as (client, deaf, name),
    ):
        report = await hosts.hand_over(deadline=0.05, unready=Unready.LEAVE, follow=0.0)
        assert report.outcome is Outcome.COMMITTED, report.reason
        assert report.closed == (name,)
        assert name not in report.connections
        await deaf.wait_lost()
        assert (await client.request("POST", "/echo", body=b"on")).body == b"on"
        assert client.server_address == hosts.destination


@pytest.mark.parametrize("lost", ["loses_orders", "loses_answers"])
async def test_a_commitment_whose_link_is_lost_is_asked_about(tmp_path: Path, lost: str) -> None:
    async with two_hosts(tmp_path) as hosts, http_client(hosts.server) as client:
        relay = Relay(hosts.agent.address.port)
        async with await asyncio.start_server(relay.run, DESTINATION, 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            stop = Stop(Step.COMMIT)
            handover = hosts.handover(stop, port=port, follow=0.0)
            running = asyncio.create_task(handover.run())
            await stop.reached.wait()
            setattr(relay, lost, True)
            stop.go.set()
            await relay.lost.wait()
            assert not handover.abort("too late")
            relay.cut()
            report = await running
            assert report.outcome is Outcome.COMMITTED
            assert (await client.request("POST", "/echo", body=b"on")).body == b"on"
            assert client.server_address == hosts.destination
            await handover.finish()


async def test_a_destination_whose_link_was_lost_is_told_that_it_may_forget(
    tmp_path: Path,
) -> None:
    """It holds silent copies, and would for the whole lease: the source may have committed."""
    async with two_hosts(tmp_path) as hosts, http_client(hosts.server) as client:
        relay = Relay(hosts.agent.address.port)
        events = hosts.agent.events()
        async with await asyncio.start_server(relay.run, DESTINATION, 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            stop = Stop(Step.COMMIT)
            running = asyncio.create_task(hosts.handover(stop, port=port).run())
            await stop.reached.wait()
            relay.cut()
            report = await running
        assert report.outcome is Outcome.ROLLED_BACK
        async for event in events:
            if isinstance(event, Discarded):
                assert event.reason.startswith("the source gave up")
                break
        await moves(hosts, client)


@pytest.mark.parametrize("step", [Step.DRAIN, Step.TRANSFER, Step.COMMIT], ids=lambda it: it.value)
async def test_a_handover_that_is_cancelled_leaves_everything_as_it_was(
    tmp_path: Path, step: Step
) -> None:
    """Whoever ordered it is gone: its clients are served here, and the agent is free at once."""
    async with two_hosts(tmp_path) as hosts, http_client(hosts.server) as client:
        events, stop = hosts.agent.events(), Stop(step)
        running = asyncio.create_task(hosts.handover(stop).run())
        await stop.reached.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert hosts.server.phase is Phase.SERVING
        assert (await client.request("POST", "/echo", body=b"on")).body == b"on"
        async for event in events:
            if isinstance(event, Discarded):
                assert event.reason == "the source gave up: the server is being stopped"
                break
        await moves(hosts, client)


SLEPT = LEASE + LEASE_MARGIN / 2
"""The lease of the source is over, and that of the agent, which has begun later, is not."""


class Sleep:
    """A time in which the host of the source sleeps, and with it the timers of its event loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._seconds = 0.0
        now = lease._now
        monkeypatch.setattr(lease, "_now", lambda: now() + self._seconds)

    def is_over(self) -> None:
        self._seconds = SLEPT


async def test_who_has_slept_through_the_lease_does_not_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_hosts(tmp_path) as hosts, http_client(hosts.server) as client:
        sleep, stop = Sleep(monkeypatch), Stop(Step.COMMIT)
        running = asyncio.create_task(hosts.handover(stop, follow=0.0).run())
        await stop.reached.wait()
        sleep.is_over()
        stop.go.set()
        report = await running
        await goes_on_at_the_source(hosts, client, report)
        assert "too long" in report.reason


async def test_who_has_slept_through_the_lease_in_doubt_does_not_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the agent says then: what it says may be from before."""
    async with two_hosts(tmp_path) as hosts, http_client(hosts.server):
        relay, sleep, stop = Relay(hosts.agent.address.port), Sleep(monkeypatch), Stop(Step.COMMIT)
        async with await asyncio.start_server(relay.run, DESTINATION, 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            running = asyncio.create_task(hosts.handover(stop, port=port, follow=0.0).run())
            await stop.reached.wait()
            relay.loses_orders = True
            stop.go.set()
            await relay.lost.wait()
            sleep.is_over()
            relay.cut()
            report = await running
        assert report.outcome is Outcome.GIVEN_UP


async def test_the_destination_goes_on_in_a_trace_of_its_own(tmp_path: Path) -> None:
    traces = QlogDirectory(tmp_path / "qlog")
    port = free_port(SOURCE, DESTINATION)
    identities = make_identities(tmp_path / "identities", [SOURCE, DESTINATION])
    traced = server_configuration(quic_logger=traces)
    async with (
        served(host=SOURCE, port=port, configuration=traced) as server,
        agent_at(DESTINATION, port, identities, configuration=traced) as agent,
        http_client(server) as client,
    ):
        await server_side(server, client)
        report = await Hosts(server, agent, identities).hand_over()
        assert report.outcome is Outcome.COMMITTED, report.reason
        await client.request("GET", "/")
    before, after = sorted(traces.path.iterdir(), key=lambda path: len(path.name))
    assert after.name == before.name.replace("-server", "-server-2")
    assert read_trace(before)[0] == read_trace(after)[0]
    assert "migration:migration_ready" in names(read_trace(before)[1])
    assert "migration:migration_completed" in names(read_trace(after)[1])


async def test_a_server_is_closed_whose_clients_have_not_followed(tmp_path: Path) -> None:
    link = Filter()
    async with (
        two_hosts(tmp_path) as hosts,
        http_client(hosts.server, wrap_transport=link) as client,
    ):
        await server_side(hosts.server, client)
        handover = hosts.handover(follow=0.0)
        link.drops_received = lambda data, addr: addr[0] == DESTINATION
        report = await handover.run()
        assert report.outcome is Outcome.COMMITTED, report.reason
        server = hosts.agent.server
        assert server is not None
        async with asyncio.timeout(20):
            await server.close()
        assert (await server.wait_completed()).is_final
