"""What listens beside the server: its management interface, and an agent."""

from __future__ import annotations

import asyncio
import functools
import json
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from loopback import demo_app, free_port, served
from relocation.agents import DESTINATION, SOURCE, agent_at
from relocation.credentials import plain_client

from fuzzing.carried import messages
from fuzzing.harness import FindingError, Steps, Target
from fuzzing.quic import damaged, looked_around
from quicferry.relocation.link.identity import make_identities
from quicferry.relocation.link.messages import Ask, NoCopy, decode, encode
from quicferry.server import ManagementServer
from quicferry.server.commands import COMMANDS

PATIENCE = 5.0
"""Seconds until somebody who should have an answer gets one."""

# Management lines

_names = sorted({name for command in COMMANDS.values() for name in command.fields})
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers() | st.floats(),
    st.text(max_size=20),
    st.sampled_from(
        ["auto", "explicit", "abort", "127.0.0.2:0", "[::1]:1", "0.0.0.0:0", "\x1b[2J"]
    ),
    st.sampled_from([0, 0.001, -1, 1e308, 10**30]),
)
_json = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=8,
)
_requests = st.fixed_dictionaries(
    {"command": st.sampled_from([*(set(COMMANDS) - {"shutdown"}), "no"])},
    optional={"id": _json, **dict.fromkeys(_names, _json)},
).map(lambda request: json.dumps(request).encode())
_nested = st.builds(
    lambda unit, times, end: unit * times + end,
    st.sampled_from([b"[", b'{"a":', b"[],", b"9", b'"', b"\\u0000", b"1e9,", b"-", b" "]),
    st.sampled_from([10, 1000, 100_000, 340_000, 1_100_000]),
    st.sampled_from([b"", b"]", b"}"]),
)
_lines = st.one_of(
    _requests,
    damaged(_requests),
    _json.map(lambda value: json.dumps(value).encode()),
    st.binary(max_size=100),
    _nested,
    _nested.map(lambda deep: b'{"command":"status","id":' + deep + b"}"),
    st.builds(
        lambda line, times: line * times,
        st.just(b'{"command":"status"}\n'),
        st.sampled_from([1, 15, 300]),
    ),
)
_ends = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n", b""])
_dialogues = st.lists(
    st.builds(lambda line, end: line + end, _lines, _ends), min_size=1, max_size=6
)


def _play_lines(value: list[bytes]) -> Steps:
    with asyncio.Runner() as runner, tempfile.TemporaryDirectory() as folder:
        stack = AsyncExitStack()
        path = Path(folder) / "socket"

        async def begin() -> asyncio.StreamWriter:
            server = await stack.enter_async_context(served())
            await stack.enter_async_context(ManagementServer(server, path))
            return (await asyncio.open_unix_connection(str(path)))[1]

        async def still_answers() -> None:
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(b'{"id": 1, "command": "status"}\n')
            async with asyncio.timeout(PATIENCE):
                reply = json.loads(await reader.readline())
            if reply.get("id") != 1 or not reply.get("ok"):
                raise FindingError(f"status is answered with {reply}")
            writer.close()

        writer = runner.run(begin())
        yield
        try:
            for line in value:
                for at_byte in range(0, len(line), 1 << 16):
                    writer.write(line[at_byte : at_byte + (1 << 16)])
                    runner.run(looked_around())
                    yield
            runner.run(still_answers())
            yield
        finally:
            writer.transport.abort()
            runner.run(stack.aclose())


# Messages to an agent


@functools.cache
def _identities() -> dict[str, Path]:
    return make_identities(Path(tempfile.mkdtemp("quicferry-fuzzing")), [SOURCE, DESTINATION])


def _sized(message: bytes, off: int) -> bytes:
    return max(len(message) + off, 0).to_bytes(4, "big") + message


_sent = st.lists(
    st.one_of(
        st.builds(_sized, messages, st.just(0)),
        st.builds(_sized, messages, st.just(0)),
        st.builds(_sized, messages, st.sampled_from([-1, 1, 1 << 26, 1 << 31])),
        st.binary(max_size=50),
    ),
    min_size=1,
    max_size=5,
)
_PIECE = 1 << 18
_ID = b"nobody's message"


def _play_agent(knows_us: bool) -> Any:
    def play(value: list[bytes]) -> Steps:
        with asyncio.Runner() as runner:
            stack = AsyncExitStack()
            tls = plain_client(_identities()[SOURCE])

            async def begin() -> tuple[int, asyncio.StreamWriter]:
                agent = agent_at(DESTINATION, free_port(DESTINATION), _identities(), demo_app)
                port = (await stack.enter_async_context(agent)).address.port
                ssl = tls if knows_us else None
                return port, (await asyncio.open_connection(DESTINATION, port, ssl=ssl))[1]

            async def still_answers(port: int) -> None:
                reader, writer = await asyncio.open_connection(DESTINATION, port, ssl=tls)
                writer.write(_sized(encode(Ask(_ID)), 0))
                async with asyncio.timeout(PATIENCE):
                    size = int.from_bytes(await reader.readexactly(4), "big")
                    answer = decode(await reader.readexactly(size))
                if answer != NoCopy(_ID):
                    raise FindingError(f"it is answered with {answer}")
                writer.transport.abort()

            port, writer = runner.run(begin())
            yield
            try:
                for message in value:
                    for at_byte in range(0, len(message), _PIECE):
                        if not writer.transport.is_closing():
                            writer.write(message[at_byte : at_byte + _PIECE])
                        runner.run(looked_around())
                        yield
                runner.run(still_answers(port))
                yield
            finally:
                writer.transport.abort()
                runner.run(stack.aclose())

    return play


def _record(kind: int, version: int, content: bytes, off: int) -> bytes:
    size = max(min(len(content) + off, 0xFFFF), 0)
    return bytes([kind]) + version.to_bytes(2, "big") + size.to_bytes(2, "big") + content


_records = st.lists(
    st.one_of(
        st.binary(max_size=300),
        st.builds(
            _record,
            st.sampled_from([20, 21, 22, 23, 24, 0]),
            st.sampled_from([0x0301, 0x0303, 0x0304, 0]),
            st.binary(max_size=100)
            | st.sampled_from([bytes(1 << 14), b"\x01\xff\xff\xff" + bytes(9000)]),
            st.sampled_from([0, 0, 0, 1, -1, 5000]),
        ),
    ),
    min_size=1,
    max_size=5,
)

TARGETS = [
    Target("management", _dialogues, _play_lines),
    Target("agent", _sent, _play_agent(knows_us=True)),
    Target("agent-strangers", _records, _play_agent(knows_us=False)),
]
