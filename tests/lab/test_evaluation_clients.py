"""The evaluation's client process, with a real server on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from loopback import at, certificate, free_port, served
from quicferry_lab.demo.app import app
from quicferry_lab.demo.processes import DemoError, child
from quicferry_lab.evaluation.load import Load, LoadError, share
from quicferry_lab.evaluation.orders import Orders
from quicferry_lab.evaluation.result import At
from quicferry_lab.evaluation.run import Backend, Run, Script, Workload
from quicferry_lab.evaluation.workload import Requests

from quicferry import MigrationProtocol, Server

HOSTS = {"127.0.0.1": At.SOURCE, "127.0.0.2": At.DESTINATION}
LIMIT = 60.0

RUN = Run(
    experiment=0,
    whose="ours",
    backend=Backend.NETNS,
    script=Script.BASELINE,
    arm="an arm",
    repetition=1,
    seed=7,
    protocol="explicit",
    policy="reactive",
    requests=3,
)


@asynccontextmanager
async def load(run: Run, address: str, folder: Path) -> AsyncIterator[Load]:
    """Provide the clients of a run, in as many processes as it takes, connected."""
    (folder / "ca.pem").write_bytes(certificate()[0])
    orders = Orders.of(
        run, tuple(range(1, run.clients + 1)), server=address, ca_file=str(folder / "ca.pem")
    )
    async with (
        asyncio.timeout(LIMIT),
        child("client process", "quicferry_lab.evaluation.clients") as process,
    ):
        clients = Load(run, [(process, orders)])
        try:
            await clients.connect()
            yield clients
        finally:
            await clients.close()


async def outcome(run: Run, folder: Path, application: Any = app) -> Load:
    """Return the clients of a run when they have sent all of their requests."""
    async with served(application) as server, load(run, str(server.address), folder) as clients:
        clients.go_on()
        await clients.finished()
        await clients.stop(0)
        return clients


@pytest.mark.parametrize("workload", list(Workload), ids=lambda each: each.value)
async def test_it_sends_what_the_workload_says(tmp_path: Path, workload: Workload) -> None:
    run = replace(RUN, workload=workload, requests=12, clients=2)
    clients = await outcome(run, tmp_path)
    requests = clients.requests(HOSTS)
    for number in (1, 2):
        wanted = Requests(workload, run.seed, number)
        sent = [each for each in requests if each.client == number]
        assert [each.number for each in sent] == list(range(1, 13))
        for request in sent:
            expected = next(wanted)
            assert (request.method, request.upload, request.download) == (
                expected.method,
                expected.upload,
                expected.download,
            )
    assert not [each for each in requests if each.error or each.service_time is None]
    assert {each.server for each in requests} == {At.SOURCE}
    assert min(each.started for each in requests) == 0.0
    assert [found.lost for found in clients.found] == ["", ""]


async def test_a_client_pauses_after_each_response(tmp_path: Path) -> None:
    clients = await outcome(replace(RUN, pause=0.05), tmp_path)
    requests = clients.requests(HOSTS)
    for one, next_one in pairwise(requests):
        assert one.service_time is not None
        assert next_one.started - one.started >= one.service_time + 0.05


def changed(only: str) -> Any:
    """Return the application, except that it changes some responses."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        async def change(message: Any) -> None:
            if message.get("body") and scope["path"].startswith(only):
                message["body"] = bytes(each ^ 1 for each in message["body"])
            await send(message)

        await app(scope, receive, change)

    return broken


@pytest.mark.parametrize("path", ["/echo", "/bytes", "/upload"])
async def test_a_wrong_byte_fails_its_request(tmp_path: Path, path: str) -> None:
    workload = Workload.FIXED if path == "/echo" else Workload.DISTRIBUTION
    clients = await outcome(replace(RUN, workload=workload, requests=20), tmp_path, changed(path))
    wrong = [each for each in clients.answers if each.error]
    assert wrong
    assert all(each.seconds is None for each in wrong)
    assert {each.method for each in wrong} == {"GET" if path == "/bytes" else "POST"}


async def test_an_answer_that_is_no_success_fails(tmp_path: Path) -> None:
    async def refusing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body"})

    clients = await outcome(RUN, tmp_path, refusing)
    assert [each.error for each in clients.answers] == ["it was answered with 503"] * 3


async def test_clients_go_as_far_as_they_are_told(tmp_path: Path) -> None:
    run = replace(RUN, requests=5)
    async with served(app) as server, load(run, str(server.address), tmp_path) as clients:
        clients.go_on(2)
        await clients.answered(2)
        clients.go_on(4)
        await clients.answered(4)
        assert [each.number for each in clients.answers] == [1, 2, 3, 4]
        await clients.stop(0)
        assert len(clients.answers) == 4


async def test_without_a_number_they_go_on_until_they_are_stopped(tmp_path: Path) -> None:
    run = replace(RUN, requests=None, clients=3)
    async with served(app) as server, load(run, str(server.address), tmp_path) as clients:
        clients.go_on()
        await clients.answered(10)
        await clients.stop(0)
        assert {found.client for found in clients.found} == {1, 2, 3}
        assert not [each for each in clients.answers if each.error]


async def relocate(server: Server, protocol: MigrationProtocol) -> None:
    destination = at("127.0.0.2", free_port("127.0.0.2"))
    explicit = protocol is MigrationProtocol.EXPLICIT
    preparation = await server.imminent(protocol, destination if explicit else None)
    assert preparation.is_ready
    await server.switch(destination)


@pytest.mark.parametrize(
    ("protocol", "policy"),
    [("explicit", "reactive"), ("explicit", "proactive"), ("symmetric", "reactive")],
)
async def test_clients_follow_a_server_and_say_so(
    tmp_path: Path, protocol: str, policy: str
) -> None:
    run = replace(RUN, protocol=protocol, policy=policy, requests=4)
    chosen = MigrationProtocol[protocol.upper()]
    async with served(app) as server, load(run, str(server.address), tmp_path) as clients:
        clients.go_on(2)
        await clients.answered(2)
        await relocate(server, chosen)
        clients.probe()
        clients.go_on()
        await clients.finished()
        await clients.stop(1)
        where = [(each.number, each.server) for each in clients.requests(HOSTS)]
        source, destination = At.SOURCE, At.DESTINATION
        assert where == [(1, source), (2, source), (3, destination), (4, destination)]
        assert [found.migrations for found in clients.found] == [1]


async def test_a_lost_connection_is_told(tmp_path: Path) -> None:
    run = replace(RUN, requests=None)
    async with served(app) as server, load(run, str(server.address), tmp_path) as clients:
        clients.go_on()
        await clients.answered(1)
        await server.close()
        await clients.finished()
        await clients.stop(0)
        (found,) = clients.found
        assert "the connection has ended" in found.lost
        with pytest.raises(LoadError, match="has not got as far"):
            await clients.answered(1_000_000)


async def test_clients_that_cannot_connect_end_with_the_reason(tmp_path: Path) -> None:
    async with served(app) as server:
        name = f"localhost.invalid:{server.address.port}"
        with pytest.raises(DemoError, match="client process ended with status 1"):
            async with load(RUN, name, tmp_path):
                pass


async def test_the_process_ends_with_its_input(tmp_path: Path) -> None:
    async with served(app) as server:
        async with child("client process", "quicferry_lab.evaluation.clients") as process:
            (tmp_path / "ca.pem").write_bytes(certificate()[0])
            orders = Orders.of(
                RUN, (1,), server=str(server.address), ca_file=str(tmp_path / "ca.pem")
            )
            process.say(**orders.encode())
            async for message in process.messages():
                assert message["event"] == "connected"
                break
        assert "its clients end as well" in process.last_words


def test_clients_are_spread_over_processes() -> None:
    assert share(1, processors=8) == [(1,)]
    assert share(50, processors=2) == [tuple(range(1, 51, 2)), tuple(range(2, 51, 2))]
    for clients, processors, processes in ((50, 1, 1), (50, 8, 5), (1000, 2, 4)):
        parts = share(clients, processors)
        assert len(parts) == processes
        assert sorted(number for part in parts for number in part) == list(range(1, clients + 1))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_orders_survive_the_way() -> None:
    orders = Orders.of(RUN, (1, 2), server="127.0.0.1:1", ca_file="ca.pem")
    assert Orders.decode(json.loads(json.dumps(orders.encode()))) == orders
