"""Links between hosts, with real packets."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from quicferry_lab.hosts import Backend, Host, Lab, LabError, PathSpec, programs

pytestmark = pytest.mark.lab

PORT = 5000
SHAPED = PathSpec(rtt_ms=18, rate_mbit=100, seed=1)

ECHO = """
import socket, sys
endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
endpoint.bind(("0.0.0.0", int(sys.argv[1])))
print("ready", flush=True)
while True:
    data, source = endpoint.recvfrom(2048)
    print(source[0], source[1], flush=True)
    endpoint.sendto(data, source)
"""

# Sends datagrams with UDP_SEGMENT, several at once; prints which of them came back, and their sizes
SEND = """
import json, socket, struct, sys
address, port, count, size = sys.argv[1], *map(int, sys.argv[2:])
endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
endpoint.settimeout(1)
endpoint.connect((address, port))
segment = [(socket.IPPROTO_UDP, 103, struct.pack("@H", size))]
data = [number.to_bytes(4, "big").ljust(size, b"x") for number in range(count)]
back = []
for first in range(0, count, 10):
    endpoint.sendmsg(data[first:first + 10], segment)
    try:
        while len(back) < first + 10:
            back.append(endpoint.recv(2048))
    except TimeoutError:
        pass
print(json.dumps([[int.from_bytes(each[:4], "big"), len(each)] for each in back]))
"""

# Sends all datagrams without waiting, and prints the numbers of those that came back.
COUNT = """
import json, socket, sys, time
address, port, count = sys.argv[1], *map(int, sys.argv[2:])
endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
endpoint.settimeout(2)
endpoint.connect((address, port))
for number in range(count):
    endpoint.send(number.to_bytes(4, "big"))
back = []
try:
    while True:
        back.append(int.from_bytes(endpoint.recv(2048), "big"))
except TimeoutError:
    pass
print(json.dumps(back))
"""


# Sends a datagram from a port, and prints what comes back.
FROM_PORT = """
import socket, sys
endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
endpoint.bind(("0.0.0.0", int(sys.argv[1])))
endpoint.settimeout(0.5)
endpoint.sendto(b"answered", (sys.argv[2], int(sys.argv[3])))
try:
    print(endpoint.recv(2048))
except (TimeoutError, ConnectionRefusedError):
    print(None)
"""
SCRIPT = ("python3", "-I", "-S", "-c")


@asynccontextmanager
async def echo(host: Host, port: int = PORT) -> AsyncIterator[Any]:
    """Answer datagrams in a host; yields the stream that tells where each came from."""
    process = await host.start([*SCRIPT, ECHO, str(port)], stdout=PIPE)
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"ready\n"
        yield process.stdout
    finally:
        programs.kill(process)
        await process.wait()


async def send(host: Host, to: Host, *numbers: int, script: str = SEND) -> Any:
    words = [str(to.address), str(PORT), *map(str, numbers)]
    return json.loads((await host.run([*SCRIPT, script, *words])).stdout)


async def ping(host: Host, to: Host) -> bool:
    done = await host.attempt(["ping", "-q", "-c", "1", "-W", "1", str(to.address)])
    return done.returncode == 0


@pytest.mark.parametrize("path", [None, PathSpec(rate_mbit=1000), SHAPED])
async def test_hosts_reach_their_neighbours_only(path: PathSpec | None) -> None:
    async with Lab() as lab:
        one, two = await lab.add_host("one"), await lab.add_host("two")
        other = await lab.add_host("other")
        await lab.connect(one, two, path)
        assert await ping(one, two)
        assert await ping(two, one)
        assert not await ping(other, one)
        with pytest.raises(LabError, match="connected already"):
            await lab.connect(two, one)


async def test_the_simplest_backend_that_fits_is_chosen() -> None:
    async with Lab() as lab:
        one, two = await lab.add_host("one"), await lab.add_host("two")
        other = await lab.add_host("other")
        plain = await lab.connect(one, two, PathSpec(rate_mbit=1000))
        shaped = await lab.connect(one, other, PathSpec(rate_mbit=1000), SHAPED)
        assert plain.backend is Backend.VETH
        assert shaped.backend in {Backend.NETEM, Backend.ROUTER}
        with pytest.raises(LabError, match="connect the hosts with such a path"):
            await plain.set(SHAPED)


async def test_a_host_has_one_address_on_all_of_its_links() -> None:
    async with Lab() as lab:
        client = await lab.add_host("client")
        servers = [await lab.add_host("near"), await lab.add_host("far")]
        await lab.connect(client, servers[0], SHAPED)
        await lab.connect(client, servers[1])
        for server in servers:
            async with echo(server) as told:
                assert await send(client, server, 1, 100) == [[0, 100]]
                assert (await told.readline()).split()[0].decode() == str(client.address)


@pytest.mark.parametrize("rtt_ms", [18, 122])
async def test_the_round_trip_time_is_the_one_asked_for(rtt_ms: float) -> None:
    async with Lab() as lab:
        one, two = await lab.add_host("one"), await lab.add_host("two")
        await lab.connect(one, two, replace(SHAPED, rtt_ms=rtt_ms))
        done = await one.run(["ping", "-c", "40", "-i", "0.02", str(two.address)])
        times = sorted(float(time) for time in re.findall(r"time=([\d.]+) ms", done.stdout))
        assert len(times) == 40
        assert times[0] >= rtt_ms
        # The best half: the answer waits for its turn on a machine that has other things to do.
        assert times[len(times) // 2] < rtt_ms + 2


async def test_each_direction_has_a_path_of_its_own() -> None:
    async with Lab() as lab:
        one, two = await lab.add_host("one"), await lab.add_host("two")
        await lab.connect(one, two, PathSpec(rtt_ms=100), PathSpec(rtt_ms=20, loss_percent=100))
        async with echo(two) as told:
            assert await send(one, two, 3, 100) == []
            for _ in range(3):
                assert (await told.readline()).split()[0].decode() == str(one.address)


async def test_a_path_can_be_changed() -> None:
    async with Lab() as lab:
        one, two = await lab.add_host("one"), await lab.add_host("two")
        link = await lab.connect(one, two, SHAPED)
        assert await ping(one, two)
        await link.set(replace(SHAPED, loss_percent=100))
        assert not await ping(one, two)
        await link.set(SHAPED)
        assert await ping(one, two)
        assert link.path == link.back == SHAPED


@pytest.mark.parametrize("path", [PathSpec(rate_mbit=1000), SHAPED])
async def test_a_cut_is_silent_and_can_be_undone(path: PathSpec) -> None:
    async with Lab() as lab:
        one, two, other = [await lab.add_host(name) for name in ("one", "two", "other")]
        link = await lab.connect(one, two, path)
        await lab.connect(one, other, path)
        await link.cut()
        await link.cut()
        done = await one.attempt(["ping", "-c", "1", "-W", "1", str(two.address)])
        assert "100% packet loss" in done.stdout
        assert not done.stderr
        assert not await ping(two, one)
        assert await ping(one, other)
        await link.restore()
        assert await ping(one, two)
        assert await ping(two, one)


async def test_the_same_packets_are_lost_with_the_same_seed() -> None:
    async with Lab() as lab:
        one, two = await lab.add_host("one"), await lab.add_host("two")
        path = PathSpec(rtt_ms=18, loss_percent=20, seed=5)
        link = await lab.connect(one, two, path, backend=Backend.ROUTER)
        async with echo(two):
            received = []
            for seed in (5, 5, 6):
                await link.set(path.with_seed(seed))
                received.append(await send(one, two, 300, script=COUNT))
    first, second, other = received
    assert 140 < len(first) < 240  # 64 % of 300 are expected
    assert first == second
    assert first != other


@pytest.mark.parametrize("path", [None, PathSpec(rate_mbit=1000), SHAPED])
async def test_datagrams_that_are_sent_at_once_pass_one_by_one(path: PathSpec | None) -> None:
    async with Lab() as lab:
        one, two = await lab.add_host("one"), await lab.add_host("two")
        await lab.connect(one, two, path)
        async with echo(two):
            assert await send(one, two, 50, 1400) == [[number, 1400] for number in range(50)]


async def test_datagrams_that_are_sent_at_once_are_lost_one_by_one() -> None:
    async with Lab() as lab:
        one, two = await lab.add_host("one"), await lab.add_host("two")
        await lab.connect(one, two, replace(SHAPED, loss_percent=20))
        async with echo(two):
            back = [number for number, _ in await send(one, two, 50, 1400)]
    bursts = [sum(number // 10 == burst for number in back) for burst in range(5)]
    assert any(0 < count < 10 for count in bursts)


async def test_a_nat_lets_in_only_answers() -> None:
    async with Lab() as lab:
        client = await lab.add_host("client")
        known, unknown = await lab.add_host("known"), await lab.add_host("unknown")
        nat = await lab.add_nat("nat", client, {known: SHAPED, unknown: SHAPED})
        async with echo(known) as told, echo(client, 4433) as heard:
            # From inside to outside, and the answer; from the port that would be reached.
            out = await client.run(
                [*SCRIPT, FROM_PORT, "4434", str(known.address), str(PORT)], limit=20
            )
            assert out.stdout == "b'answered'\n"
            source, port = (await told.readline()).split()
            assert source.decode() == str(nat.host.address)
            # From another port, from another host, and to a port that has a listener inside.
            for host, target in ((known, int(port)), (unknown, int(port)), (unknown, 4433)):
                words = [FROM_PORT, "4999", str(nat.host.address), str(target)]
                assert (await host.run([*SCRIPT, *words], limit=20)).stdout == "None\n"
            # The client still is where its address is, for those that know the way.
            assert await ping(client, unknown)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await heard.readline()


@pytest.mark.parametrize("path", [None, SHAPED])
async def test_a_host_that_crashes_is_silent(path: PathSpec | None) -> None:
    async with Lab() as lab:
        one, two, other = [await lab.add_host(name) for name in ("one", "two", "other")]
        await lab.connect(one, two, path)
        await lab.connect(one, other, path)
        server = await two.start(["sh", "-c", "echo ready; sleep 1000"], stdout=PIPE)
        assert server.stdout is not None
        assert await server.stdout.readline() == b"ready\n"
        await lab.crash(two)
        assert server.returncode == -signal.SIGKILL
        done = await one.attempt(["ping", "-c", "1", "-W", "1", str(two.address)])
        assert "100% packet loss" in done.stdout
        assert not done.stderr
        assert await ping(one, other)


async def test_a_link_that_cannot_be_made_says_why() -> None:
    async with Lab() as lab:
        one, two = await lab.add_host("one"), await lab.add_host("two")
        await two.close()
        for backend in (Backend.VETH, Backend.ROUTER):
            with pytest.raises(LabError):
                await lab.connect(one, two, backend=backend)
