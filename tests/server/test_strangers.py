"""A server that strangers knock at moves as ever, and says how many there are."""

from __future__ import annotations

import pytest
from loopback import at, free_port, http_client, served
from relocating import HOSTS
from strangers import knock, knock_with_token, stranger

from quicferry import Address
from quicferry.server import ConfigurationError

NONE = {"half_open": 0, "refused": 0, "retried": 0, "dropped": 0, "expired": 0}


async def test_status() -> None:
    async with served(max_half_open=20) as server, http_client(server) as client:
        await client.ping()
        assert server.status()["handshakes"] == NONE
        async with stranger(server.address.port, "127.0.0.9") as it:
            await it.send([*(knock() for _ in range(10)), b"\xc0\0\0\0\1".ljust(1200, b"\0")])
            for _ in range(4):
                await knock_with_token(it)
        expected = {"half_open": 2 + 4, "retried": 8 + 4, "dropped": 1}
        assert server.status()["handshakes"] == NONE | expected
        assert len(server.status()["connections"]) == 1
        assert (await client.request("POST", "/", body=b"x")).body == b"x"


async def test_a_move_ends_what_is_half_open() -> None:
    """Their place at the new address is for others."""
    port = free_port(*HOSTS)

    async def fetch(address: Address) -> bytes:
        async with http_client(server, host=str(address.host)) as client:
            return (await client.request("POST", "/", body=b"x")).body

    async with (
        served(port=port, max_half_open=40) as server,
        http_client(server) as client,
        stranger(port) as it,
    ):
        await client.ping()
        await it.send(knock() for _ in range(10))
        assert server.status()["handshakes"] == NONE | {"half_open": 4, "retried": 6}
        preparation = await server.imminent()
        assert preparation.is_ready
        assert len(preparation.protocols) == 1
        await it.send(knock() for _ in range(10))
        assert server.status()["handshakes"]["refused"] >= 10  # and those that waited for a turn
        await server.switch(at("127.0.0.2", port))
        assert await fetch(server.address) == b"x"
        assert (await client.request("POST", "/", body=b"x")).body == b"x"
        assert (await server.wait_completed(10)).is_complete


async def test_a_server_that_would_take_nobody_does_not_start() -> None:
    with pytest.raises(ConfigurationError, match="max_half_open"):
        async with served(max_half_open=0):
            pass
