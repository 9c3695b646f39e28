from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import pytest
from aioquic.asyncio.server import serve as stock_serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicErrorCode
from loopback import (
    Filter,
    certificate,
    client_configuration,
    http_client,
    served,
    server_side,
)

import quicferry
from quicferry import BindError, ConnectionProtocol
from quicferry.io import ConnectFailed
from quicferry.protocol import ConnectionClosed
from quicferry.server import load_pem


def echo(reader: Any, writer: Any) -> None:
    async def run() -> None:
        writer.write(await reader.read())
        writer.write_eof()

    asyncio.get_running_loop().create_task(run())


async def ask(client: ConnectionProtocol, data: bytes) -> bytes:
    reader, writer = await client.create_stream()
    writer.write(data)
    writer.write_eof()
    return await reader.read()


async def test_stream_handlers_on_both_sides() -> None:
    async with await quicferry.serve(
        "127.0.0.1", 0, configuration=_plain_server(), stream_handler=echo
    ) as server:
        port = server.address.port
        async with quicferry.connect(
            "127.0.0.1", port, configuration=client_configuration(), stream_handler=echo
        ) as client:
            assert await ask(client, b"hello" * 1000) == b"hello" * 1000
            protocol = await server_side(server, client)
            assert await ask(protocol, b"and back") == b"and back"
            assert client.remote == f"127.0.0.1:{port}"


async def test_stock_server() -> None:
    server = await stock_serve("127.0.0.1", 0, configuration=_plain_server(), stream_handler=echo)
    assert server._transport is not None
    port = server._transport.get_extra_info("sockname")[1]
    async with quicferry.connect("127.0.0.1", port, configuration=client_configuration()) as client:
        assert await ask(client, b"plain") == b"plain"
        assert client.negotiated is None
    server.close()


async def test_migration_off() -> None:
    async with served() as server:
        async with http_client(server, configuration=client_configuration(None)) as client:
            assert client.negotiated is None
            assert (await client.request("POST", "/", body=b"plain")).body == b"plain"
        plain = QuicConfiguration(alpn_protocols=["h3"], cadata=certificate()[0])
        async with http_client(server, configuration=plain) as client:
            assert client.negotiated is None
        async with http_client(server) as client:
            assert client.negotiated == quicferry.ALL_PROTOCOLS


async def test_the_callers_configuration_is_not_changed() -> None:
    configuration = client_configuration()
    async with served() as server, http_client(server, configuration=configuration):
        assert configuration.server_name is None


async def test_by_name_and_over_ipv6() -> None:
    for server_host, named in (("::1", "::1"), ("localhost", "localhost")):
        async with served(host=server_host) as server, http_client(server, host=named) as client:
            assert (await client.request("POST", "/", body=b"echo")).body == b"echo"
            assert client.peer_address == server.address
            assert client.negotiated == quicferry.ALL_PROTOCOLS


async def test_the_unspecified_address_is_this_host() -> None:
    for server_host, named in (("127.0.0.1", "0.0.0.0"), ("::1", "::")):
        configuration = client_configuration(server_name="localhost")
        async with (
            served(host=server_host) as server,
            http_client(server, host=named, configuration=configuration) as client,
        ):
            assert client.peer_address == server.address


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".example"])
async def test_a_name_that_is_none(name: str) -> None:
    with pytest.raises(socket.gaierror):
        async with quicferry.connect(name, 9, configuration=client_configuration()):
            pass


async def test_local_port() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("0.0.0.0", 0))
        port = taken.getsockname()[1]
        async with served() as server:
            with pytest.raises(BindError, match=f"cannot bind 0.0.0.0:{port}"):
                async with http_client(server, local_port=port):
                    pass
            taken.close()
            async with http_client(server, local_port=port) as client:
                await server_side(server, client)
                [status] = server.status()["connections"]
                assert status["client"] == f"127.0.0.1:{port}"


async def test_no_answer() -> None:
    configuration = client_configuration(idle_timeout=0.3)
    with silent() as (host, port), pytest.raises(ConnectFailed, match=f"{port}: Idle timeout"):
        async with quicferry.connect(host, port, configuration=configuration):
            pass


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_nobody_there(host: str) -> None:
    configuration = client_configuration(idle_timeout=3600)
    told = r"cannot connect to \S+:9: nobody listens at \S+:9 \(Connection refused\)"
    with pytest.raises(ConnectFailed, match=told):
        async with quicferry.connect(host, 9, configuration=configuration):
            pass
    async with quicferry.connect(
        host, 9, configuration=configuration, wait_connected=False
    ) as client:
        client.transmit()
        with pytest.raises(ConnectFailed, match=told):
            await client.wait_connected()


async def test_what_anybody_may_say_does_not_end_a_handshake() -> None:
    link = Filter()
    link.drops_sent = lambda data, addr: True
    configuration = client_configuration(idle_timeout=0.5)
    async with quicferry.connect(
        "127.0.0.1", 9, configuration=configuration, wrap_transport=link, wait_connected=False
    ) as client:
        client.transmit()
        for _ in range(3):
            link.inner.send(b"a datagram that is none of the connection's", ("127.0.0.1", 9))
        with pytest.raises(ConnectFailed, match="Idle timeout"):
            await client.wait_connected()


async def test_what_the_network_says_later_does_not_end_a_connection() -> None:
    async with served() as server:
        relay = await Relay.open(server.address.port)
        async with quicferry.connect(
            "127.0.0.1", relay.port, configuration=client_configuration()
        ) as client:
            await client.ping()
            await relay.close()
            pings = [asyncio.create_task(client.ping()) for _ in range(3)]
            await asyncio.sleep(0)
            again = await Relay.open(server.address.port, relay.port, relay.client)
            await asyncio.gather(*pings)
            assert client.closed_by is None
        await again.close()


@contextmanager
def resolving(monkeypatch: pytest.MonkeyPatch, *hosts: str) -> Iterator[None]:
    """Let every name have these addresses."""

    def getaddrinfo(host: str, port: int, *_: Any) -> list[Any]:
        families = {True: socket.AF_INET6, False: socket.AF_INET}
        rest = {True: (0, 0), False: ()}
        return [
            (families[":" in each], socket.SOCK_DGRAM, 17, "", (each, port, *rest[":" in each]))
            for each in hosts
        ]

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        yield


@contextmanager
def silent(host: str = "127.0.0.1", port: int = 0) -> Iterator[tuple[str, int]]:
    """Provide an address where somebody listens, and says nothing."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as listening:
        listening.bind((host, port))
        yield listening.getsockname()[:2]


@pytest.mark.parametrize("first", ["nobody", "silent"])
@pytest.mark.parametrize("other", ["::1", "127.0.0.2"])
async def test_every_address_of_a_name_is_tried(
    first: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with served() as server:
        port = server.address.port
        with ExitStack() as stack:
            if first == "silent":
                stack.enter_context(silent(other, port))
            stack.enter_context(resolving(monkeypatch, other, "127.0.0.1"))
            async with http_client(server, host="localhost") as client:
                assert (await client.request("POST", "/", body=b"echo")).body == b"echo"
                assert client.peer_address == server.address
                assert client.remote == f"localhost:{port}"


async def test_no_address_of_a_name_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        resolving(monkeypatch, "::1", "127.0.0.1"),
        pytest.raises(ConnectFailed, match=r"to localhost:9: nobody listens at \[::1\]:9"),
    ):
        async with quicferry.connect("localhost", 9, configuration=client_configuration()):
            pass


async def test_the_address_that_answers_says_what_is_wrong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configuration = client_configuration()
    configuration.cadata = None
    async with served() as server:
        for hosts in (("::1", "127.0.0.1"), ("127.0.0.1", "::1")):
            with (
                resolving(monkeypatch, *hosts),
                pytest.raises(ConnectFailed, match="certificate"),
            ):
                async with http_client(server, host="localhost", configuration=configuration):
                    pass


async def test_untrusted_certificate() -> None:
    async with served() as server:
        configuration = client_configuration()
        configuration.cadata = None
        with pytest.raises(ConnectFailed, match="certificate"):
            async with http_client(server, configuration=configuration):
                pass


async def test_an_error_of_this_side_ends_the_connection(caplog: pytest.LogCaptureFixture) -> None:
    configuration = client_configuration()
    configuration.cafile = "/does/not/exist"
    async with served() as server:
        with pytest.raises(ConnectFailed) as caught:
            async with http_client(server, configuration=configuration):
                pass
    assert caught.value.error_code == QuicErrorCode.INTERNAL_ERROR
    assert "no such file" in caplog.text


async def test_a_failing_start_leaves_nothing_open() -> None:
    configuration = client_configuration()
    configuration.cipher_suites = [None]  # type: ignore[list-item]  # wrong on purpose
    async with served() as server:
        with pytest.raises(TypeError):
            async with http_client(server, configuration=configuration):
                pass


async def test_a_link_is_harmless_after_the_end() -> None:
    link = Filter()
    async with served() as server, http_client(server, wrap_transport=link) as client:
        assert (await client.request("POST", "/", body=b"linked")).body == b"linked"
        address = ("127.0.0.1", server.address.port)
    link.send(b"late", address)
    link.deliver(b"late", address)


class Relay(asyncio.DatagramProtocol):
    """Hands datagrams on between one client and a server on 127.0.0.1."""

    front: asyncio.DatagramTransport
    back: asyncio.DatagramTransport
    port: int

    def __init__(self, client: Any) -> None:
        self.client = client
        self.closed = asyncio.Event()

    @classmethod
    async def open(cls, server: int, port: int = 0, client: Any = None) -> Relay:
        loop = asyncio.get_running_loop()
        relay = cls(client)
        relay.front, _ = await loop.create_datagram_endpoint(
            lambda: relay, local_addr=("127.0.0.1", port)
        )
        relay.port = relay.front.get_extra_info("sockname")[1]
        relay.back, _ = await loop.create_datagram_endpoint(
            lambda: _Back(relay), remote_addr=("127.0.0.1", server)
        )
        return relay

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.client = addr
        self.back.sendto(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set()

    async def close(self) -> None:
        self.back.close()
        self.front.close()
        await self.closed.wait()


class _Back(asyncio.DatagramProtocol):
    def __init__(self, relay: Relay) -> None:
        self.relay = relay

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.relay.front.sendto(data, self.relay.client)


def _plain_server() -> QuicConfiguration:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=["h3"])
    load_pem(configuration, *certificate())
    return configuration


LONG = 1000.0
"""Seconds of a probe timeout, which no test waits for."""


async def test_a_client_that_has_all_does_not_wait_for_a_long_path() -> None:
    async with served() as server:
        async with http_client(server) as client:
            events = client.migration_events()
            assert (await client.request("POST", "/", body=b"all")).body == b"all"
            side = await server_side(server, client)
            recovery = client.connection._loss
            patch.object(recovery, "get_probe_timeout", return_value=LONG).start()
        assert [event async for event in events][-1:] == [ConnectionClosed(0x100, "")]
        assert (await side.wait_lost()).error_code == 0x100


async def test_a_server_that_still_sends_is_told_a_second_time() -> None:
    link = Filter()
    async with served() as server:
        async with http_client(server, wrap_transport=link) as client:
            side = await server_side(server, client)
            async with client.stream("GET", "/bytes/100000000") as response:
                await anext(aiter(response))
                first = iter([True])
                client.on_lost(
                    lambda lost: setattr(link, "drops_sent", lambda data, addr: next(first, False))
                )
                client.close()
        assert (await side.wait_lost()).error_code == 0x100
        assert next(first, None) is None
