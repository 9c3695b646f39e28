from __future__ import annotations

import select
import socket

import pytest
from loopback import at, free_port

from quicferry.io import BindError, UdpSocket
from quicferry.protocol import Address
from quicferry.transport import NetworkAddress

NO_CHECKSUM = 11  # SO_NO_CHECK; the kernel then refuses to segment


def received(sock: UdpSocket, count: int) -> list[tuple[bytes, NetworkAddress, str | None]]:
    """Return `count` datagrams, however many wake-ups they take."""
    datagrams: list[tuple[bytes, NetworkAddress, str | None]] = []
    while len(datagrams) < count:
        select.select([sock], [], [])
        datagrams += sock.receive(64)
    return datagrams


def bound(host: str = "127.0.0.1") -> UdpSocket:
    return UdpSocket.bind(at(host, 0))


def test_bind_error_names_address_cause_and_remedy() -> None:
    with pytest.raises(BindError) as caught:
        UdpSocket.bind(at("192.0.2.1", 4433))
    text = str(caught.value)
    assert text.startswith("cannot bind 192.0.2.1:4433: Cannot assign requested address; add")
    assert caught.value.address == at("192.0.2.1", 4433)


def test_address_in_use() -> None:
    first = bound()
    port = first.local[1]
    with pytest.raises(BindError, match="Address already in use; choose another port"):
        UdpSocket.bind(at("127.0.0.1", port))
    with pytest.raises(BindError, match="already there"):
        UdpSocket.bind(at("127.0.0.1", port), beside=[first])
    first.close()
    UdpSocket.bind(at("127.0.0.1", port)).close()


@pytest.mark.parametrize(("first", "second"), [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")])
def test_wildcard_beside_own_socket_only(first: str, second: str) -> None:
    port = free_port("0.0.0.0")
    own = UdpSocket.bind(at(first, port))
    with pytest.raises(BindError, match="in use"):
        UdpSocket.bind(at(second, port))
    other = UdpSocket.bind(at(second, port), beside=[own])
    # Nobody else can share the port now
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            thief.bind((second, port))
    own.close()
    other.close()


def test_socket_of_another_program_is_not_taken_over() -> None:
    port = free_port("0.0.0.0", "127.0.0.2")
    own, foreign = UdpSocket.bind(at("0.0.0.0", port)), None
    foreign = UdpSocket.bind(at("127.0.0.2", port), beside=[own])
    with pytest.raises(BindError, match="in use"):
        UdpSocket.bind(at("127.0.0.2", port), beside=[own])
    own.close()
    foreign.close()


@pytest.mark.parametrize("source", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("segmentation", ["supported", "refused"])
def test_datagrams_arrive_as_they_were_sent(source: str, segmentation: str) -> None:
    raw = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    raw.bind((source, 0))
    if segmentation == "refused":
        raw.setsockopt(socket.SOL_SOCKET, NO_CHECKSUM, 1)
    sender, first, second = UdpSocket(raw), bound(), bound()
    sizes = [1200, 1200, 1200, 300, 1200, 1300, 1300, 20, 20, 21, *[1200] * 150, 1]
    to_first = [(bytes([n % 251]) * size, first.local) for n, size in enumerate(sizes)]
    to_second = [(b"other", second.local)]
    sender.send(to_first[:2] + to_second + to_first[2:], "127.0.0.1")
    assert [data for data, _, _ in received(first, len(sizes))] == [data for data, _ in to_first]
    assert [data for data, _, _ in received(second, 1)] == [b"other"]
    for each in (sender, first, second):
        each.close()


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "[::]"])
def test_wildcard_socket_answers_from_where_it_was_asked(wildcard: str) -> None:
    hosts = ["127.0.0.3", "127.0.0.4"] if wildcard == "0.0.0.0" else ["::1"]
    server = UdpSocket.bind(Address.parse(f"{wildcard}:0"))
    client = UdpSocket.bind(Address.parse(f"{wildcard}:0"))
    for host in hosts:
        client.send([(b"question", (host, *server.local[1:]))])
        [(_, peer, asked)] = received(server, 1)
        assert asked == host
        server.send([(b"answer", peer)] * 3, asked)
        assert {sender[0] for _, sender, _ in received(client, 3)} == {host}
    server.close()
    client.close()


def test_what_cannot_be_sent_is_dropped() -> None:
    sender, receiver = bound(), bound()
    nobody = ("127.0.0.1", free_port())
    sender.send([(b"lost", nobody), (b"too long" * 10_000, receiver.local), (b"no", ("", 0))])
    sender.send([(b"arrives", receiver.local)])
    assert [data for data, _, _ in received(receiver, 1)] == [b"arrives"]
    receiver.send([(b"back", sender.local)])  # past the ICMP error for the first
    assert [data for data, _, _ in received(sender, 1)] == [b"back"]
    sender.close()
    sender.send([(b"lost", receiver.local)])
    receiver.close()
