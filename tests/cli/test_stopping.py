"""Signals end `serve` and `agent run` when running requests have ended, or at once if urged."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from aioquic.h3.connection import ErrorCode
from cli.command_line import finish, start
from loopback import time_limit
from relocation.parties import Party, Stage, stage

from quicferry.client import GoingAway
from quicferry.io import ConnectionLost

__all__ = ["time_limit"]

APP = """
import asyncio, json, pathlib
from quicferry_lab.demo.app import app as demo

def say(event):
    print(json.dumps({"event": event}), flush=True)

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for step in ("startup", "shutdown"):
            await receive()
            say(step)
            await send({"type": f"lifespan.{step}.complete"})
    elif scope["path"] != "/slow":
        await demo(scope, receive, send)
    else:
        say("begun")
        try:
            while not pathlib.Path("go").exists():
                await asyncio.sleep(0.01)
        finally:
            say("ended")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})
"""


async def serving(made: Stage, where: str) -> Party:
    """Return the process that serves, which is the agent's after a handover."""
    if where == "serve":
        return made.server
    migrate = await made.migrate("--timeout", "0.1")
    await made.agent.hears("serving")
    assert await migrate.end() == 0, migrate.account()
    return made.agent


@pytest.mark.parametrize("where", ["serve", "agent run"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_running_requests_end(tmp_path: Path, where: str, number: signal.Signals) -> None:
    (tmp_path / "stopping.py").write_text(APP)
    async with stage(tmp_path, "stopping:app") as made:
        party = await serving(made, where)
        http = made.clients[0].http
        slow = asyncio.create_task(http.request("GET", "/slow"))
        await party.hears("begun")
        party.signal(number)
        await party.hears("stopping", running=1, seconds=30.0)
        while not http.is_going_away:
            await http.ping()
        with pytest.raises(GoingAway):
            await http.request("GET", "/")
        (tmp_path / "go").touch()
        assert (await slow).body == b"done"
        assert (await http.wait_lost()).error_code == ErrorCode.H3_NO_ERROR
        assert await party.end() == 0, party.account()
        said = [message["event"] for message in party.said]
        assert said[said.index("ended") :][:2] == ["ended", "shutdown"]
        assert said[-1] == "stopped"


@pytest.mark.parametrize("where", ["serve", "agent run"])
async def test_a_second_signal_ends_them_at_once(tmp_path: Path, where: str) -> None:
    (tmp_path / "stopping.py").write_text(APP)
    async with stage(tmp_path, "stopping:app") as made:
        party = await serving(made, where)
        slow = asyncio.create_task(made.clients[0].http.request("GET", "/slow"))
        await party.hears("begun")
        party.signal(signal.SIGTERM)
        await party.hears("stopping")
        party.signal(signal.SIGTERM)
        with pytest.raises(ConnectionLost):
            await slow
        assert await party.end() == 0, party.account()
        said = [message["event"] for message in party.said]
        assert said[-3:] == ["ended", "shutdown", "stopped"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_still_starting(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "never.py").write_text(
        "import asyncio\n"
        "async def app(scope, receive, send):\n"
        "    print('begun', flush=True)\n"
        "    await asyncio.Event().wait()\n"
    )
    process = start("serve", "never:app", "--bind", "127.0.0.1:0", cwd=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(number)
    status, _, err = finish(process)
    assert (status, err.splitlines()[-1]) == (0, b"stopped before the application had started")
