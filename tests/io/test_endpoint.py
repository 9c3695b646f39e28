from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable

import pytest
from loopback import at, free_port

from quicferry.io import BindError, UdpEndpoint, UdpSocket
from quicferry.io.endpoint import BATCH, Received
from quicferry.protocol import Address

LINGER = 0.05


class Recorder:
    """What an endpoint receives: pairs of the local address and the data, in batches."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[str, bytes]]] = []
        self._news = asyncio.Event()

    def __call__(self, sock: UdpSocket, datagrams: Received) -> None:
        self.batches.append([(sock.local[0], data) for data, _, _ in datagrams])
        self._news.set()

    async def everything(self, count: int) -> list[tuple[str, bytes]]:
        """Return all datagrams once there are `count`."""
        while len(self.all) < count:
            self._news.clear()
            await self._news.wait()
        return self.all

    @property
    def all(self) -> list[tuple[str, bytes]]:
        return [datagram for batch in self.batches for datagram in batch]


@pytest.fixture
async def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def opened(recorder: Recorder) -> AsyncIterator[Callable[[Address], UdpEndpoint]]:
    endpoints: list[UdpEndpoint] = []

    def open_endpoint(address: Address) -> UdpEndpoint:
        endpoints.append(UdpEndpoint(address, recorder, linger=LINGER))
        return endpoints[-1]

    yield open_endpoint
    for endpoint in endpoints:
        endpoint.close()


def send(data: bytes, address: Address) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(data, (str(address.host), address.port))


async def lingered() -> None:
    """Wait until a timer has fired that was started later than that of a lingering socket."""
    await asyncio.sleep(LINGER + 0.01)


async def test_what_is_under_way_during_a_rebind_arrives(
    opened: Callable[[Address], UdpEndpoint], recorder: Recorder
) -> None:
    old, new = at("127.0.0.1", free_port()), at("127.0.0.2", free_port())
    endpoint = opened(old)
    send(b"before", old)  # in the socket's buffer, not yet read
    endpoint.rebind(new)
    send(b"late", old)
    send(b"after", new)
    assert sorted(await recorder.everything(3)) == [
        ("127.0.0.1", b"before"),
        ("127.0.0.1", b"late"),
        ("127.0.0.2", b"after"),
    ]
    assert endpoint.address == new
    await lingered()
    UdpSocket.bind(old).close()  # it is free again


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("127.0.0.1", "127.0.0.2"),
        ("0.0.0.0", "127.0.0.2"),
        ("127.0.0.2", "0.0.0.0"),
    ],
)
async def test_there_and_back_on_the_same_port(
    opened: Callable[[Address], UdpEndpoint], recorder: Recorder, old: str, new: str
) -> None:
    port = free_port()
    endpoint = opened(at(old, port))
    for count, host in enumerate([new, old, new, old], start=1):
        endpoint.rebind(at(host, port))  # the socket there still lingers
        assert endpoint.address == at(host, port)
        send(b"here", at("127.0.0.2" if host == "0.0.0.0" else host, port))
        await recorder.everything(count)
    await lingered()
    send(b"still here", at("127.0.0.2" if old == "0.0.0.0" else old, port))
    assert (await recorder.everything(5))[-1] == (old, b"still here")


async def test_only_the_port_changes(
    opened: Callable[[Address], UdpEndpoint], recorder: Recorder
) -> None:
    endpoint = opened(at("127.0.0.1", 0))
    new = at("127.0.0.1", free_port())
    endpoint.rebind(new)
    send(b"new", new)
    assert await recorder.everything(1) == [("127.0.0.1", b"new")]


async def test_failed_rebind_changes_nothing(
    opened: Callable[[Address], UdpEndpoint], recorder: Recorder
) -> None:
    endpoint = opened(at("127.0.0.1", 0))
    address, used = endpoint.address, endpoint.socket
    for impossible in (at("192.0.2.1", 4433), opened(at("127.0.0.2", 0)).address):
        with pytest.raises(BindError, match=f"cannot bind {impossible}"):
            endpoint.rebind(impossible)
    assert endpoint.address == address
    assert endpoint.socket is used
    await lingered()
    send(b"goes on", address)
    assert await recorder.everything(1) == [("127.0.0.1", b"goes on")]


async def test_a_flood_leaves_other_tasks_their_turn(
    opened: Callable[[Address], UdpEndpoint], recorder: Recorder
) -> None:
    endpoint = opened(at("127.0.0.1", 0))
    flood = UdpSocket.bind(at("127.0.0.1", 0))
    flood.send([(b"%d" % number, endpoint.socket.local) for number in range(3 * BATCH)])
    await recorder.everything(3 * BATCH)
    assert [len(batch) for batch in recorder.batches] == [BATCH] * 3
    flood.close()


async def test_closed_endpoint_is_silent(opened: Callable[[Address], UdpEndpoint]) -> None:
    endpoint = opened(at("127.0.0.1", 0))
    left = endpoint.address
    endpoint.rebind(at("127.0.0.2", 0))
    endpoint.close()
    endpoint.close()
    for address in (left, at("127.0.0.2", endpoint.socket.local[1])):
        UdpSocket.bind(address).close()
    endpoint.socket.send([(b"lost", ("127.0.0.1", 9))])
