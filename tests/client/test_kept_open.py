"""A connection lives on while an answer is outstanding, and between repeated requests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from in_memory import connected
from loopback import respond
from virtual_fetch import fetch_virtually
from virtual_time import run_virtually

from quicferry.client import HttpClient
from quicferry.io import ConnectionLost
from quicferry.io.udp import Datagram


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer after as many seconds as the path says; /body/N: begin at once, and then wait."""
    assert scope["type"] == "http"
    *_, body, seconds = scope["path"].split("/")
    if body:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await asyncio.sleep(float(seconds))
        await send({"type": "http.response.body", "body": b"late"})
    else:
        await asyncio.sleep(float(seconds))
        await respond(send, b"late")


class Counting:
    """Counts the datagrams of a connection, and drops them when it is told to."""

    def __init__(self, client: HttpClient) -> None:
        sender = client._sender
        assert sender is not None
        self.sender = sender
        self.number = 0
        self.drops = False
        client.attach(self)

    def send(self, datagrams: Sequence[Datagram]) -> None:
        self.number += len(datagrams)
        if not self.drops:
            self.sender.send(datagrams)


@pytest.mark.parametrize("path", ["/1000", "/body/1000"])
def test_an_answer_that_takes_long(path: str) -> None:
    async def run() -> None:
        async with connected(app, HttpClient) as this:
            counting = Counting(this.client)
            began = asyncio.get_running_loop().time()
            assert (await this.client.request("GET", path)).body == b"late"
            assert asyncio.get_running_loop().time() - began == pytest.approx(1000, abs=1)
            assert counting.number < 1000 / 20 + 10

    run_virtually(run())


def test_a_server_with_less_patience() -> None:
    async def run() -> None:
        async with connected(app, HttpClient, idle_timeout=5.0) as this:
            assert (await this.client.request("GET", "/70")).body == b"late"

    run_virtually(run())


def test_kept_open_without_requests() -> None:
    async def run() -> None:
        async with connected(app, HttpClient) as this:
            with this.client.kept_open():
                with this.client.kept_open():
                    await asyncio.sleep(100)
                await asyncio.sleep(100)
                assert (await this.client.request("GET", "/0")).body == b"late"
                await asyncio.sleep(100)
            assert this.client.closed_by is None
            await asyncio.sleep(100)
            assert this.client.closed_by is not None
            assert this.client.closed_by.reason == "Idle timeout"

    run_virtually(run())


def test_a_busy_connection_is_not_asked() -> None:
    async def run(*, kept: bool) -> int:
        async with connected(app, HttpClient) as this:
            counting = Counting(this.client)
            for _ in range(100):
                if kept:
                    with this.client.kept_open():
                        await this.client.request("GET", "/1")
                else:
                    await this.client.request("GET", "/1")
            return counting.number

    assert run_virtually(run(kept=True)) == run_virtually(run(kept=False))


def test_a_server_that_is_gone_is_noticed() -> None:
    async def run() -> None:
        async with connected(app, HttpClient) as this:
            counting = Counting(this.client)
            request = asyncio.create_task(this.client.request("GET", "/1000"))
            await asyncio.sleep(30)
            counting.drops = True
            began = asyncio.get_running_loop().time()
            with pytest.raises(ConnectionLost, match="Idle timeout"):
                await request
            assert asyncio.get_running_loop().time() - began < 60 + 25 + 1

    run_virtually(run())


@pytest.mark.parametrize(
    "arguments",
    [
        ["https://localhost/70", "--timeout", "120"],
        ["https://localhost/0", "--repeat", "3", "--interval", "70"],
    ],
)
def test_fetch(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert fetch_virtually(monkeypatch, app, *arguments) == 0
    assert capfd.readouterr().out == "late" * (3 if "--repeat" in arguments else 1)
