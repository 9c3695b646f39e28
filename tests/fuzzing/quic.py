"""Datagrams and frames, before and after the handshake, for both ends."""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable
from typing import Any

from aioquic.buffer import encode_uint_var
from aioquic.quic.connection import QuicConnectionState
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicErrorCode, QuicProtocolVersion
from aioquic.tls import Epoch
from hypothesis import strategies as st
from loopback import client_configuration, served, server_configuration
from quicferry_lab.simulation import Endpoint
from simulated_pair import AWAY, HOME, Until, genuine, pair

from fuzzing.harness import FindingError, Steps, Target
from quicferry.protocol import FrameType, MigrationProtocol
from quicferry.transport import Connection

V1, V2 = int(QuicProtocolVersion.VERSION_1), int(QuicProtocolVersion.VERSION_2)

_EDGES = [0, 1, 2, 3, 4, 7, 63, 64, 255, 1200, 16383, 16384, 1 << 20, (1 << 30) - 1, 1 << 30]
_EDGES += [1 << 60, (1 << 60) + 1, (1 << 62) - 1]
numbers = st.sampled_from(_EDGES) | st.integers(0, 300)
varints = st.builds(encode_uint_var, numbers) | numbers.filter(lambda n: n < 1 << 30).map(
    lambda number: (number | 2 << 30).to_bytes(4, "big")  # in more bytes than it takes
)
data = st.binary(max_size=40)
sized = data.map(lambda content: encode_uint_var(len(content)) + content)
short_ids = st.sampled_from([0, 1, 2, 3, 4, 5, 8, 11, 400, 4000]).map(encode_uint_var)


def frame(kind: int, *parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*parts).map(lambda found: encode_uint_var(kind) + b"".join(found))


def many(parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """So many times as the number in front says, or not."""
    repeated = st.tuples(parts, st.sampled_from([0, 1, 3, 60]), st.sampled_from([0, 1, 1000]))
    return repeated.map(lambda it: encode_uint_var(it[1] + it[2]) + varint_0 + it[0] * it[1])


varint_0 = encode_uint_var(0)
acks = frame(0x02, varints, varints, many(st.tuples(varints, varints).map(b"".join)))
frames = st.one_of(
    st.sampled_from([b"\0", b"\1", b"\x1e"]),
    acks,
    acks.map(lambda ack: b"\3" + ack[1:] + bytes(3)),
    frame(0x04, short_ids, varints, varints),
    frame(0x05, short_ids, varints),
    frame(0x06, varints, sized),
    frame(0x07, sized),
    frame(0x08, short_ids, data),
    frame(0x0B, short_ids, sized),
    frame(0x0E, short_ids, varints, sized),
    frame(0x0F, short_ids, varints, sized),
    frame(0x10, varints),
    frame(0x11, short_ids, varints),
    frame(0x12, varints),
    frame(0x13, varints),
    frame(0x14, varints),
    frame(0x15, short_ids, varints),
    frame(0x16, varints),
    frame(0x17, varints),
    frame(
        0x18,
        varints,
        varints,
        st.binary(min_size=8, max_size=8).map(lambda i: b"\x08" + i),
        st.binary(min_size=16, max_size=16),
    ),
    frame(0x19, varints),
    frame(0x1A, st.binary(min_size=8, max_size=8)),
    frame(0x1B, st.binary(min_size=8, max_size=8)),
    frame(0x1C, varints, varints, sized),
    frame(0x1D, varints, sized),
    frame(0x30, data),
    frame(0x31, sized),
    *(frame(kind, st.binary(max_size=40)) for kind in FrameType),
    frame(FrameType.SERVER_MIGRATION, st.just(bytes.fromhex("0a0000021151") + bytes(18))),
    frame(0x33, varints),
)


def damaged(contents: st.SearchStrategy[bytes], most: int = 4) -> st.SearchStrategy[bytes]:
    """With some bytes changed, cut off, or put in."""
    places = st.tuples(st.integers(0, 4000), st.sampled_from("xid<"), st.binary(max_size=4))

    def apply(content: bytes, changes: list[tuple[int, str, bytes]]) -> bytes:
        for place, how, new in changes:
            at = place % (len(content) + 1)
            match how:
                case "x":
                    content = content[:at] + new + content[at + len(new) :]
                case "i":
                    content = content[:at] + new + content[at:]
                case "d":
                    content = content[:at] + content[at + len(new) :]
                case "<":
                    content = content[:at]
        return content

    return st.builds(apply, contents, st.lists(places, max_size=most))


repeated = st.tuples(
    st.lists(frames, min_size=1, max_size=4).map(b"".join), st.sampled_from([1, 1, 1, 20, 300])
)
payloads = repeated.map(lambda it: (it[0] * it[1])[:1300])
payloads = payloads | damaged(payloads)


_BY_PEER = (QuicConnectionState.DRAINING, QuicConnectionState.TERMINATED)
"""A peer may give any reason for its goodbye; one of our own is looked at before it is over."""


def is_defined(connection: Connection) -> None:
    """Check that a connection lives, or was closed with an error of the peer's."""
    event = connection._close_event
    if event is None or event.reason_phrase == "Idle timeout" or connection._state in _BY_PEER:
        return
    if event.error_code == QuicErrorCode.INTERNAL_ERROR:
        raise FindingError(f"an internal error: {event.reason_phrase}")


def _play_frames(to_server: bool, until: Until, epoch: Epoch) -> Callable[[Any], Steps]:
    def play(value: list[tuple[bytes, float]]) -> Steps:
        with pair(until=until) as it:
            sender: Endpoint = it.client if to_server else it.server
            receiver: Endpoint = it.server if to_server else it.client
            if until is Until.QUIET:
                it.imminent(MigrationProtocol.EXPLICIT, AWAY)
            it.client.application = it.server.application = None
            source = it.client.external if to_server else HOME
            yield
            for payload, pause in value:
                ends = (
                    sender.connection._cryptos[epoch].send,
                    receiver.connection._cryptos[epoch].recv,
                )
                if sender.connection._close_event or not all(end.is_valid() for end in ends):
                    return
                it.deliver(receiver, genuine(sender, payload, epoch=epoch), source)
                is_defined(receiver.connection)  # type: ignore[arg-type]  # both ends are ours
                yield
                it.network.run_for(pause)
                yield

    return play


_packets = st.lists(st.tuples(payloads, st.sampled_from([0.0, 0.05])), min_size=1, max_size=5)


# Before the handshake, at a server's socket


@functools.cache
def client_hello() -> bytes:
    """The first message of a client, with nothing around it."""
    client = Connection(configuration=client_configuration(server_name="localhost"))
    client.connect(("127.0.0.1", 1), 0.0)
    stream = client._crypto_streams[Epoch.INITIAL].sender
    return bytes(stream._buffer)


def initial(
    cid: bytes, payload: bytes, *, version: int = V1, token: bytes = b"", number: int = 0
) -> bytes:
    """An Initial packet of a client, with any content."""
    crypto = CryptoPair()
    crypto.setup_initial(cid=cid, is_client=True, version=version)
    kind = 0xC0 if version != V2 else 0xD0
    payload = payload.ljust(1150, b"\0")
    header = bytes([kind | 1]) + version.to_bytes(4, "big")
    header += bytes([len(cid)]) + cid + b"\x08" + cid[:8].ljust(8, b"\0")
    header += encode_uint_var(len(token)) + token
    header += encode_uint_var(2 + len(payload) + crypto.aead_tag_size) + number.to_bytes(2, "big")
    return crypto.encrypt_packet(header, payload, number)


def _crypto(hello: bytes, cut: int) -> bytes:
    """The message in two CRYPTO frames, the second one first."""
    at = cut % (len(hello) + 1)
    pieces = ((at, hello[at:]), (0, hello[:at]))
    return b"".join(
        b"\x06" + encode_uint_var(offset) + encode_uint_var(len(piece)) + piece
        for offset, piece in pieces
    )


_cids = st.binary(min_size=0, max_size=20)
_hellos = damaged(st.builds(client_hello)).map(lambda hello: hello[:1100])
_contents = st.builds(_crypto, _hellos, st.integers(0, 400)) | payloads.map(lambda p: p[:1150])
_initials = st.builds(
    initial,
    _cids.filter(lambda cid: len(cid) >= 8),
    _contents,
    version=st.sampled_from([V1, V1, V2]),
    token=st.just(b"") | st.binary(max_size=100),
    number=st.sampled_from([0, 1, 65535]),
)


def _long(first: int, version: int, one: bytes, two: bytes, rest: bytes) -> bytes:
    header = bytes([0xC0 | first]) + version.to_bytes(4, "big")
    return (header + bytes([len(one)]) + one + bytes([len(two)]) + two + rest).ljust(1200, b"\xaa")


_garbage = st.binary(min_size=1, max_size=1300) | st.builds(
    _long,
    st.integers(0, 63),
    st.sampled_from([0, V1, V2, 0x1A2A3A4A]) | st.integers(0, (1 << 32) - 1),
    st.binary(max_size=255),
    st.binary(max_size=255),
    st.binary(max_size=400),
)
_datagrams = st.lists(
    st.tuples(st.one_of(_initials, damaged(_initials), _garbage), st.sampled_from([1, 1, 2, 30])),
    min_size=1,
    max_size=6,
)


async def looked_around() -> None:
    """Let the event loop look at its sockets, and do what follows."""
    for _ in range(4):
        await asyncio.sleep(0)


def _play_datagrams(value: list[tuple[bytes, int]]) -> Steps:
    with asyncio.Runner() as runner, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        context = served(configuration=server_configuration())
        server = runner.run(context.__aenter__())
        sock.setblocking(False)
        sock.bind(("127.0.0.1", 0))
        yield
        try:
            for datagram, times in value:
                for _ in range(times):
                    sock.sendto(datagram, ("127.0.0.1", server.address.port))
                    runner.run(looked_around())
                    yield
        finally:
            runner.run(context.__aexit__(None, None, None))


def _play_answers(value: list[tuple[bytes, float]]) -> Steps:
    """Datagrams of anybody's to a client that waits for its first answer."""
    with pair(until=Until.CLIENT_HELLO) as it:
        yield
        for datagram, pause in value:
            it.deliver(it.client, datagram, HOME)
            is_defined(it.client.migrating)
            yield
            it.network.run_for(pause)
            yield


_answers = st.lists(st.tuples(_garbage | _initials, st.sampled_from([0.0, 0.1])), max_size=5)

TARGETS = [
    Target("server-datagrams", _datagrams, _play_datagrams),
    Target("client-datagrams", _answers, _play_answers),
    Target("client-initial", _packets, _play_frames(False, Until.CLIENT_HELLO, Epoch.INITIAL)),
    Target("client-handshake", _packets, _play_frames(False, Until.SERVER_HELLO, Epoch.HANDSHAKE)),
    Target("server-handshake", _packets, _play_frames(True, Until.SERVER_HELLO, Epoch.HANDSHAKE)),
    Target("client-frames", _packets, _play_frames(False, Until.QUIET, Epoch.ONE_RTT)),
    Target("server-frames", _packets, _play_frames(True, Until.QUIET, Epoch.ONE_RTT)),
]
