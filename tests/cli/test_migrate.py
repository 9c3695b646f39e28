"""`quicferry migrate`: a server goes from one process to another, or stays and it is said why."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from loopback import at, demo_app, free_port, time_limit
from quicferry_lab.demo.app import app
from relocation.agents import agent_at
from relocation.parties import APPLICATION, DESTINATION, SOURCE, STEPS, Client, Party, Stage, stage

from quicferry.cli import main
from quicferry.client import RequestFailed
from quicferry.protocol import Address, MigrationProtocol
from quicferry.relocation import make_identities

__all__ = ["time_limit"]

CLI = f"{sys.executable} -m quicferry.cli"

SLOW = """
import asyncio
from quicferry_lab.demo.app import app as demo

released = asyncio.Event()

async def app(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/go":
        released.set()
    elif scope["type"] == "http" and scope["path"] == "/slow":
        await released.wait()
    else:
        return await demo(scope, receive, send)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})
"""


@pytest.fixture
async def cast(tmp_path: Path) -> AsyncIterator[Stage]:
    async with stage(tmp_path) as made:
        yield made


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[Stage]:
    """Servers whose application answers /slow once it was asked for /go."""
    (tmp_path / "slow.py").write_text(SLOW)
    async with stage(tmp_path, "slow:app") as made:
        yield made


async def ends(party: Party, status: int) -> None:
    """Wait for the end of a process, and check its status."""
    assert await party.end() == status, party.account()


async def meanwhile(client: Client, method: str, path: str) -> asyncio.Task[bytes]:
    """Send a request that the server is at work on when this returns."""

    async def ask() -> bytes:
        return (await client.http.request(method, path)).body

    asked = asyncio.create_task(ask())
    await asyncio.sleep(0)
    await client.work()  # what was sent before it has arrived
    return asked


async def test_a_server_is_moved(cast: Stage) -> None:
    migrate = await cast.migrate("--timeout", "1")
    await cast.agent.hears("Adopted")
    await cast.served_at(cast.destination)
    await ends(migrate, 0)
    *told, report = migrate.said
    begun = [event["step"] for event in told if event["event"] == "StepBegun"]
    assert begun == [event["step"] for event in told if event["event"] == "StepEnded"]
    assert begun == list(report["phases"])
    assert set(STEPS) <= set(begun)
    assert all(event["seconds"] >= 0 for event in told if event["event"] == "StepEnded")
    assert (report["outcome"], report["reason"]) == ("committed", "")
    assert (report["source"], report["destination"]) == (cast.source, cast.destination)
    assert len(report["connections"]) == len(cast.clients)
    assert migrate.errors == ""
    await ends(cast.server, 0)
    assert cast.server.said[-1] == {"event": "stopped"}
    assert not cast.socket.exists()
    serving = await cast.agent.hears("serving")
    assert serving["address"] == cast.destination


async def test_people_are_told(cast: Stage) -> None:
    migrate = await cast.run(
        *("migrate", "--from", cast.socket, "--to", cast.agent_address),
        *("--identity", cast.identity(SOURCE), "--timeout", "0.1"),
    )
    await ends(migrate, 0)
    lines = migrate.text.splitlines()
    assert lines[0].startswith(
        f"moved from {cast.source} to {cast.destination}: {len(cast.clients)} connections, "
    )
    assert lines[1].startswith("silent for ")
    steps = [line.split()[0] for line in migrate.errors.splitlines()]
    assert steps == [*STEPS[:-2], "switch", *STEPS[-2:]]


async def test_the_address_can_be_given(cast: Stage) -> None:
    without_pool(cast)
    await goes_elsewhere(cast)


def without_pool(cast: Stage) -> None:
    """Let those clients go that go nowhere but to the addresses of a pool."""
    for client in [*cast.clients]:
        if client.protocol is MigrationProtocol.POOL_OF_ADDRESSES:
            cast.clients.remove(client)
            client.http.close()


async def goes_elsewhere(cast: Stage) -> None:
    """The server goes to an address that is not the agent's own."""
    elsewhere = at("127.0.0.3", free_port("127.0.0.3"))
    migrate = await cast.migrate("--address", str(elsewhere), "--timeout", "1")
    await cast.agent.hears("Adopted", address=str(elsewhere))
    await cast.served_at(str(elsewhere))
    await ends(migrate, 0)
    assert migrate.said[-1]["destination"] == str(elsewhere)


async def test_what_cannot_be_moved_stays(cast: Stage, tmp_path: Path) -> None:
    async def stays(agent: str, *remedies: str) -> None:
        migrate = await cast.migrate(agent=agent)
        await ends(migrate, 1)
        report = migrate.said[-1]
        assert (report["outcome"], report["failed_phase"]) == ("rolled-back", "offer")
        for remedy in remedies:
            assert remedy in report["reason"]
        await cast.served_at(cast.source)

    identities = {host: cast.identity(host) for host in (SOURCE, DESTINATION)}
    async with agent_at(DESTINATION, 4433, identities, demo_app, application="other:app") as agent:
        reason = f"the source runs {APPLICATION}, and the agent other:app"
        await stays(str(agent.address), reason, "start an agent with the same application")
    strangers = make_identities(tmp_path / "strangers", [SOURCE, DESTINATION])
    async with agent_at(DESTINATION, 4433, strangers, demo_app) as agent:
        await stays(str(agent.address), "certificate is not accepted", "append its certificate.pem")
    nowhere = f"{DESTINATION}:{free_port(DESTINATION)}"
    await stays(nowhere, nowhere, "quicferry agent run")
    await cast.moves_to_the_agent()


async def test_the_agent_of_another_host_does_not_get_it(cast: Stage, tmp_path: Path) -> None:
    """Three hosts trust one another, and the third one answers where the second is looked for."""
    third = "beta.example"
    three = make_identities(tmp_path / "three", [SOURCE, DESTINATION, third])
    async with agent_at(
        DESTINATION,
        Address.parse(cast.destination).port,
        {DESTINATION: three[third]},
        app,
        application=APPLICATION,
    ) as agent:
        identity = ("--identity", str(three[SOURCE]), "--timeout", "1")
        migrate = await cast.migrate(*identity, agent=str(agent.address))
        await ends(migrate, 1)
        reason = migrate.said[-1]["reason"]
        assert f"it names {third}, and not {DESTINATION}" in reason
        assert "--peer" in reason
        await cast.served_at(cast.source)
        migrate = await cast.migrate(*identity, "--peer", third, agent=str(agent.address))
        await ends(migrate, 0)
        assert migrate.said[-1]["outcome"] == "committed"
        await cast.served_at(cast.destination)


async def test_what_is_said_wrong_stays(cast: Stage) -> None:
    name = await cast.migrate(agent="host.invalid:4434")
    await ends(name, 1)
    assert "--address HOST:" in name.errors
    socket = await cast.run(
        *("migrate", "--from", cast.folder / "gone.sock", "--to", cast.agent_address),
        *("--identity", cast.identity(SOURCE)),
    )
    await ends(socket, 1)
    assert "no server listens" in socket.errors
    (cast.folder / "empty").mkdir()
    identity = await cast.migrate("--identity", str(cast.folder / "empty"))
    await ends(identity, 1)
    assert "quicferry agent init" in identity.errors
    await cast.served_at(cast.source)


async def test_running_requests_keep_the_server(slow: Stage) -> None:
    client = slow.clients[0]
    asked = await meanwhile(client, "GET", "/slow")
    migrate = await slow.migrate("--drain", "0.2")
    await ends(migrate, 1)
    report = migrate.said[-1]
    assert (report["outcome"], report["failed_phase"]) == ("rolled-back", "drain")
    assert "still running: GET /slow (stream" in report["reason"]
    assert (await client.http.request("GET", "/go")).body == b"done"
    assert await asked == b"done"
    await slow.served_at(slow.source)


async def test_running_requests_can_come_to_their_end(slow: Stage) -> None:
    client, other, *_ = slow.clients
    asked = await meanwhile(client, "GET", "/slow")
    migrate = await slow.migrate("--drain", "20", "--timeout", "1")
    await migrate.hears("StepBegun", step="drain")
    assert (await other.http.request("GET", "/go")).body == b"done"
    assert await asked == b"done"
    await slow.agent.hears("Adopted")
    await slow.served_at(slow.destination)
    await ends(migrate, 0)


@pytest.mark.parametrize(("method", "code"), [("GET", 0x10B), ("POST", 0x10C)])
async def test_running_requests_can_be_reset(slow: Stage, method: str, code: int) -> None:
    client = slow.clients[0]
    asked = await meanwhile(client, method, "/slow")
    migrate = await slow.migrate("--drain", "0.2", "--force", "--timeout", "1")
    with pytest.raises(RequestFailed) as caught:
        await asked
    assert caught.value.error_code == code
    await slow.agent.hears("Adopted")
    await slow.served_at(slow.destination)
    await ends(migrate, 0)
    (rejected,) = migrate.said[-1]["rejected"]
    assert rejected.startswith(f"{method} /slow (stream ")


@pytest.mark.parametrize(
    ("step", "way"), [("freeze", "SIGINT"), ("commit", "SIGTERM"), ("transfer", "end of input")]
)
async def test_it_can_be_called_off(cast: Stage, step: str, way: str) -> None:
    migrate = await cast.rehearse(step)
    if way == "end of input":
        migrate.end_input()
    else:
        migrate.signal(signal.Signals[way])
    await ends(migrate, 1)
    report = migrate.said[-1]
    assert (report["outcome"], report["reason"]) == ("rolled-back", "it was aborted")
    await cast.served_at(cast.source)


@pytest.mark.parametrize("step", ["drain", "freeze", "transfer", "commit"])
async def test_once_called_off_it_goes_anywhere(cast: Stage, step: str) -> None:
    without_pool(cast)
    migrate = await cast.rehearse(step)
    migrate.signal(signal.SIGINT)
    await ends(migrate, 1)
    assert migrate.said[-1]["announced"] == {}
    await goes_elsewhere(cast)


async def test_a_server_goes_there_and_back_again(cast: Stage) -> None:
    home = await cast.run_agent(SOURCE)
    listening = await home.hears("listening")
    servers = {SOURCE: cast.server}
    for source, agent, where in (
        (SOURCE, cast.agent, cast.destination),
        (DESTINATION, home, cast.source),
        (SOURCE, cast.agent, cast.destination),
    ):
        to = listening["address"] if agent is home else cast.agent_address
        migrate = await cast.migrate("--timeout", "1", agent=to, source=source)
        await agent.hears("serving", address=where)
        await cast.served_at(where)
        await ends(migrate, 0)
        if source in servers:
            await ends(servers.pop(source), 0)
        else:
            await (home if agent is not home else cast.agent).hears("Released")
        agent.said.clear()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--technique", "cold"], "--technique cold needs --container"),
        (["--technique", "cold", "--container", "x", "--drain", "3"], "--drain is of no use"),
        (["--technique", "cold", "--container", "x", "--force"], "--force is of no use"),
        (["--container", "x"], "--container is of no use with --technique handover"),
        (["--compress", "none"], "--compress is of no use with --technique handover"),
    ],
)
def test_options_that_mean_nothing_for_a_technique(
    options: list[str], words: str, tmp_path: Path
) -> None:
    command = ["migrate", "--to", "127.0.0.2:4434", "--identity", str(tmp_path), *options]
    result = CliRunner().invoke(main, command, prog_name="quicferry")
    assert result.exit_code == 2
    assert words in result.output


@pytest.mark.parametrize("given", ["</dev/null", "<&-", "< empty", "< one-line", "< <(echo)"])
async def test_the_end_of_the_input_goes_back(cast: Stage, given: str) -> None:
    (cast.folder / "empty").touch()
    (cast.folder / "one-line").write_text("\n")
    where = f"--from {cast.folder / SOURCE}.sock --to {cast.agent_address}"
    line = f"{CLI} migrate --step {where} --identity {cast.identity(SOURCE)} {given}"
    process = await asyncio.create_subprocess_exec(
        "bash", "-c", line, cwd=cast.folder, stderr=asyncio.subprocess.PIPE
    )
    _, errors = await process.communicate()
    said = errors.decode()
    assert process.returncode == 1, said
    lines_there = "echo" in given or "one-line" in given
    step = STEPS[1] if lines_there else STEPS[0]
    assert f"standard input has ended, so it goes back before {step}\n" in said
    assert "not moved: it was aborted" in said
    assert "Traceback" not in said
    await cast.served_at(cast.source)
    await cast.moves_to_the_agent()


async def test_each_line_of_the_input_lets_a_step_begin(cast: Stage) -> None:
    (cast.folder / "lines").write_text("\n" * len(STEPS))
    where = f"--from {cast.folder / SOURCE}.sock --to {cast.agent_address} --timeout 1"
    line = f"{CLI} migrate --step {where} --identity {cast.identity(SOURCE)} < lines"
    process = await asyncio.create_subprocess_exec("bash", "-c", line, cwd=cast.folder)
    await cast.agent.hears("Adopted")
    await cast.served_at(cast.destination)
    assert await process.wait() == 0


async def test_too_late_to_go_back_the_end_of_the_input_goes_on(cast: Stage) -> None:
    migrate = await cast.rehearse("follow")
    migrate.end_input()
    await cast.served_at(cast.destination)
    await ends(migrate, 0)
    assert "too late to go back, so it goes on" in migrate.errors


async def test_a_server_is_chosen_by_the_option_that_the_hint_names(cast: Stage) -> None:
    runtime = cast.folder / "runtime"
    (runtime / "quicferry").mkdir(parents=True, mode=0o700)
    listening = [socket.socket(socket.AF_UNIX) for _ in range(2)]
    for number, sock in enumerate(listening, 1):
        sock.bind(str(runtime / "quicferry" / f"{number}.sock"))
        sock.listen()
    arguments = ("--to", cast.agent_address, "--identity", str(cast.identity(SOURCE)), "--json")
    process = await asyncio.create_subprocess_exec(
        *(*CLI.split(), "migrate", *arguments),
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    for sock in listening:
        sock.close()
    assert "several servers run; choose one with --socket" in errors.decode()
    migrate = await cast.run(
        *("migrate", "--socket", cast.folder / f"{SOURCE}.sock", *arguments, "--timeout", "1")
    )
    await cast.agent.hears("Adopted")
    await cast.served_at(cast.destination)
    await ends(migrate, 0)
