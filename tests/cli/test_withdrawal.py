"""A change of mind on the command line, as the tutorial does it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from cli.command_line import RunningServer, finish, moved, read_json, start

OLDER_CLIENT = """
import asyncio, ssl, sys
import quicferry

class Older(quicferry.HttpClient):
    def __init__(self, quic, **arguments):
        quic.knows_withdrawals = False
        super().__init__(quic, **arguments)

async def main(host, port):
    configuration = quicferry.Configuration(
        is_client=True, alpn_protocols=["h3"], verify_mode=ssl.CERT_NONE,
        server_migration=quicferry.ClientMigration(quicferry.MigrationProtocol.EXPLICIT),
    )
    async with quicferry.connect(
        host, int(port), configuration=configuration, create_protocol=Older
    ) as client:
        await client.request("GET", "/")
        print("connected", flush=True)
        await client.wait_lost()

asyncio.run(main(*sys.argv[1].rsplit(":", 1)))
"""
HESITANT_CLIENT = """
import asyncio, ssl, sys
import quicferry
from quicferry.transport import Connection

announcements = set()
handle, acknowledge = Connection._handle_migration_frame, Connection._write_ack_frame

def heed(self, context, frame_type, buf):
    announcements.add(self._received.current)
    handle(self, context, frame_type, buf)

def withhold(self, builder, space, now):
    for number in announcements:
        space.ack_queue.subtract(number, number + 1)
    if len(space.ack_queue):
        acknowledge(self, builder, space, now)

Connection._handle_migration_frame, Connection._write_ack_frame = heed, withhold

async def main(host, port):
    configuration = quicferry.Configuration(
        is_client=True, alpn_protocols=["h3"], verify_mode=ssl.CERT_NONE,
        server_migration=quicferry.ClientMigration(quicferry.MigrationProtocol.EXPLICIT),
    )
    async with quicferry.connect(
        host, int(port), configuration=configuration, create_protocol=quicferry.HttpClient
    ) as client:
        print("connected", flush=True)
        while client.closed_by is None:
            await client.request("GET", "/")
            await asyncio.sleep(0.05)

asyncio.run(main(*sys.argv[1].rsplit(":", 1)))
"""
"""Lives, and acknowledges everything but that the server will move: so that is never ready."""

NOWHERE = "192.0.2.1:4433"


def third(server: RunningServer) -> str:
    return "127.0.0.3:" + server.address.rpartition(":")[2]


def status_of(server: RunningServer) -> dict[str, Any]:
    return dict(json.loads(server.ctl("status", "--json").stdout))


@pytest.fixture
def client(server: RunningServer) -> Iterator[subprocess.Popen[bytes]]:
    """A client that sends requests, one after the other."""
    process = start(
        *("fetch", server.url(), "--insecure", "--json", "--repeat", "1000000"),
        *("-o", "/dev/null", "--interval", "0.05"),
        *("--protocols", "explicit"),
    )
    assert read_json(process)["server"] == server.address
    yield process
    process.send_signal(signal.SIGINT)  # it closes its connection: the server need not wait
    finish(process)


def connected(program: str, server: RunningServer) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        [sys.executable, "-c", program, server.address], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"connected\n"
    return process


@pytest.fixture
def hesitant(server: RunningServer) -> Iterator[subprocess.Popen[bytes]]:
    """A client for which the server is never ready."""
    process = connected(HESITANT_CLIENT, server)
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def older(server: RunningServer) -> Iterator[str]:
    """A client that cannot be told, and the name of its connection."""
    process = connected(OLDER_CLIENT, server)
    (connection,) = status_of(server)["connections"]
    yield connection["id"]
    process.send_signal(signal.SIGINT)
    finish(process)


def events_until_at(client: subprocess.Popen[bytes], address: str) -> list[str]:
    """Return what a client tells of until it is served at an address."""
    told = []
    while (said := read_json(client)).get("server") != address:
        if said["event"] != "response":
            told.append(f"{said['event']} {said.get('address')}")
    return told


@pytest.mark.parametrize("protocol", ["auto", "explicit"])
def test_an_address_that_this_host_does_not_have(
    server: RunningServer, client: subprocess.Popen[bytes], protocol: str
) -> None:
    """It fails at once, no client is told, and afterwards the server goes anywhere else."""
    done = server.ctl("migrate", NOWHERE, "--protocol", protocol)
    assert done.returncode == 1
    assert done.stdout == b""
    assert b"CANNOT_BIND" in done.stderr
    assert NOWHERE.encode() in done.stderr
    assert server.ctl("imminent", NOWHERE, "--protocol", protocol).returncode == 1
    assert status_of(server)["phase"] == "serving"
    destination = moved(server)
    assert server.ctl("migrate", destination).returncode == 0
    told = events_until_at(client, destination)
    assert told[0] == f"ServerMigrationReceived {destination}"
    assert not any(NOWHERE in each for each in told)


def test_a_change_of_mind(server: RunningServer, client: subprocess.Popen[bytes]) -> None:
    destination = moved(server)
    assert server.ctl("imminent", destination).returncode == 0
    done = server.ctl("abort")
    assert (done.returncode, done.stdout) == (0, b"aborted\n")
    assert server.ctl("migrate", third(server)).returncode == 0
    told = events_until_at(client, third(server))
    withdrawn = told.index(f"AnnouncementWithdrawn {destination}")
    assert told[0] == f"ServerMigrationReceived {destination}"
    assert told.index(f"ServerMigrationReceived {third(server)}") > withdrawn


def test_elsewhere_is_not_tried_here(
    server: RunningServer, client: subprocess.Popen[bytes]
) -> None:
    assert server.ctl("imminent", NOWHERE, "--elsewhere").returncode == 0
    assert server.ctl("abort").returncode == 0
    assert server.ctl("migrate", moved(server)).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_move_is_given_up(
    server: RunningServer,
    client: subprocess.Popen[bytes],
    hesitant: subprocess.Popen[bytes],
    number: signal.Signals,
) -> None:
    moving = start("ctl", "--socket", server.socket, "migrate", moved(server), "--deadline", "60")
    while status_of(server)["phase"] != "preparing":
        assert moving.poll() is None, moving.communicate()
    moving.send_signal(number)
    status, _, err = finish(moving)
    assert status == 130
    assert b"Traceback" not in err
    assert status_of(server)["phase"] == "serving"
    hesitant.kill()  # nobody waits for it any more
    assert server.ctl("migrate", third(server), "--deadline", "20").returncode == 0
    events_until_at(client, third(server))


def test_a_client_that_cannot_be_told_is_named(server: RunningServer, older: str) -> None:
    destination = moved(server)
    assert server.ctl("imminent", destination).returncode == 0
    done = server.ctl("abort")
    assert done.returncode == 0
    assert f"{older}  still expects the server at {destination}" in done.stdout.decode()
    shown = server.ctl("status").stdout.decode()
    assert f"told to expect the server at {destination}" in shown
    refused = server.ctl("migrate", third(server))
    assert refused.returncode == 1
    for word in ("INVALID_STATE", older, destination, "--unready leave"):
        assert word in refused.stderr.decode()
    assert status_of(server)["phase"] == "serving"
    left = server.ctl("migrate", third(server), "--unready", "leave", "--json")
    assert left.returncode == 0
    assert json.loads(left.stdout)["switch"]["closed"] == [older]


def test_it_can_be_moved_where_it_expects_the_server(server: RunningServer, older: str) -> None:
    destination = moved(server)
    assert server.ctl("imminent", destination).returncode == 0
    assert server.ctl("abort").returncode == 0
    done = server.ctl("migrate", destination, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["imminent"]["connections"] == {older: "explicit"}
