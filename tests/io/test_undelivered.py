"""What the network says of datagrams, and that asking for it costs none."""

from __future__ import annotations

import errno
import select
import sys

import pytest
from loopback import at, free_port

from quicferry.io import UdpSocket
from quicferry.io.undelivered import Undelivered
from quicferry.protocol import Address
from quicferry.transport import NetworkAddress

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")


def pair(host: str) -> tuple[UdpSocket, UdpSocket, NetworkAddress]:
    """Return two sockets, and an address where nobody is."""
    sockets = [UdpSocket.bind(Address.parse(f"{host}:0")) for _ in range(2)]
    probe = UdpSocket.bind(Address.parse(f"{host}:0"))
    probe.close()
    return sockets[0], sockets[1], probe.local


def wait(sock: UdpSocket) -> list[bytes]:
    select.select([sock], [], [])
    return [data for data, _, _ in sock.receive(64)]


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_refused_datagram_is_reported(host: str) -> None:
    sender, receiver, nobody = pair(host)
    reports: list[Undelivered] = []
    sender.report_undelivered(reports.append)
    sender.send([(b"refused", nobody)])
    while not reports:
        assert wait(sender) == []
    [report] = reports
    assert (report.data, report.errno) == (b"refused", errno.ECONNREFUSED)
    assert report.peer[:2] == nobody[:2]
    assert str(report) == f"nobody listens at {host}:{nobody[1]} (Connection refused)"
    for each in (sender, receiver):
        each.close()


def test_what_is_sent_after_a_refused_datagram_arrives() -> None:
    sender, receiver, nobody = pair("127.0.0.1")
    reports: list[Undelivered] = []
    sender.report_undelivered(reports.append)
    for number in range(10):
        sender.send([(b"refused", nobody), (b"%d" % number, receiver.local)])
    arrived: list[bytes] = []
    while len(arrived) < 10:
        arrived += wait(receiver)
    assert arrived == [b"%d" % number for number in range(10)]
    receiver.send([(b"back", sender.local)])
    while wait(sender) != [b"back"]:
        pass
    assert {report.data for report in reports} == {b"refused"}
    for each in (sender, receiver):
        each.close()


def test_nothing_is_reported_any_more() -> None:
    sender, receiver, nobody = pair("127.0.0.1")
    reports: list[Undelivered] = []
    sender.report_undelivered(reports.append)
    sender.report_undelivered(None)
    sender.send([(b"refused", nobody), (b"arrives", receiver.local)])
    assert wait(receiver) == [b"arrives"]
    receiver.send([(b"back", sender.local)])
    assert wait(sender) == [b"back"]
    assert reports == []
    for each in (sender, receiver):
        each.close()


def test_what_the_kernel_does_not_take_is_reported_if_no_other_can_go_there() -> None:
    sender = UdpSocket.bind(at("127.0.0.1", 0))
    reports: list[Undelivered] = []
    sender.report_undelivered(reports.append)
    sender.send([(b"too long" * 10_000, ("127.0.0.1", free_port()))])
    assert reports == []
    everybody = ("255.255.255.255", 9)  # which takes a permission
    sender.send([(b"one", everybody)])
    assert reports == [Undelivered(b"one", everybody, errno.EACCES)]
    assert str(reports[0]) == "255.255.255.255:9 cannot be reached (Permission denied)"
    sender.close()
