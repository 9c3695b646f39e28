"""Where an agent lets servers go."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from loopback import at, http_client
from relocation.agents import DESTINATION, agent_at, two_hosts

from quicferry import Address
from quicferry.cli import main
from quicferry.relocation import Destinations, Outcome, Place
from quicferry.relocation.steps import destinations as module
from quicferry.relocation.steps.destinations import ports_in

ANY_PORT, ONE_PORT = Place.parse("192.0.2.7"), Place.parse("[2001:db8::7]:443")
EVERY = [Destinations(), Destinations((ANY_PORT,)), Destinations(ports=frozenset({53}))]


@pytest.mark.parametrize("destinations", EVERY)
@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0:4433", "[::]:4433", "[::ffff:0.0.0.0]:4433", "[::ffff:127.0.0.1]:4433"),
        *("224.0.0.1:4433", "[ff02::1]:4433", "255.255.255.255:4433", "127.0.0.1:0"),
    ],
)
def test_what_is_no_single_address(destinations: Destinations, address: str) -> None:
    problem = destinations.problem(Address.parse(address))
    assert problem is not None
    assert "--address HOST:PORT" in problem


@pytest.mark.parametrize(
    ("ports", "address", "problem"),
    [
        ((), "127.0.0.1:1024", None),
        ((), "127.0.0.2:65535", None),
        ((), "[::1]:4433", None),
        ((), "127.0.0.1:1023", "ports below 1024"),
        ((), "127.0.0.1:53", "--allow-address 127.0.0.1:53"),
        ((443,), "127.0.0.1:443", None),
        ((443,), "127.0.0.1:53", "ports below 1024"),
        ((443,), "192.0.2.7:443", "no address of this host"),
        ((), "192.0.2.7:4433", "--allow-address 192.0.2.7:4433"),
        ((), "[2001:db8::7]:4433", "no address of this host"),
        ((), "127.255.255.255:4433", "no address of this host"),
    ],
)
def test_without_a_list(ports: tuple[int, ...], address: str, problem: str | None) -> None:
    found = Destinations().with_ports(ports).problem(Address.parse(address))
    assert (problem in found) if problem and found else problem == found


@pytest.mark.parametrize(
    ("address", "may"),
    [
        ("192.0.2.7:53", True),
        ("192.0.2.7:4433", True),
        ("[2001:db8::7]:443", True),
        ("[2001:db8::7]:444", False),
        ("192.0.2.8:4433", False),
        ("127.0.0.1:4433", False),
    ],
)
def test_with_a_list(address: str, may: bool) -> None:
    destinations = Destinations((ANY_PORT, ONE_PORT)).with_ports([443])
    problem = destinations.problem(Address.parse(address))
    assert (problem is None) == may
    assert may or f"--allow-address {address}" in str(problem)


def test_a_host_whose_programs_may_use_any_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = tmp_path / "ip_nonlocal_bind"
    setting.write_text("1\n")
    monkeypatch.setattr(module, "_FOREIGN_TOO", {4: setting, 6: tmp_path / "none"})
    assert "ip_nonlocal_bind" in str(Destinations().problem(Address.parse("127.0.0.1:4433")))
    assert Destinations().problem(Address.parse("[::1]:4433")) is None
    setting.write_text("0\n")
    assert Destinations().problem(Address.parse("127.0.0.1:4433")) is None


@pytest.mark.parametrize(
    ("command", "ports"),
    [
        ("serve app:app --bind 0.0.0.0:443 --socket x", {443}),
        ("serve app:app --bind=[::]:853", {853}),
        ("serve app:app", set()),
        ("serve app:app --bind", set()),
        ("serve app:app --bind nowhere", set()),
    ],
)
def test_ports_of_a_command(command: str, ports: set[int]) -> None:
    assert ports_in(command.split()) == ports


@pytest.mark.parametrize(
    "text", ["", "example.org", "0.0.0.0", "[::]:443", "224.0.0.1", "192.0.2.7:x", "::ffff:1.2.3.4"]
)
def test_places_that_are_none(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="address"):
        Place.parse(text)
    arguments = ["agent", "run", "a:b", "--identity", str(tmp_path), "--allow-address", text]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert "--allow-address" in done.output


# By an agent


@pytest.mark.parametrize(
    ("to", "reason"),
    [
        ("0.0.0.0:53", "stands for all addresses"),
        ("127.0.0.2:53", "--allow-address 127.0.0.2:53"),
        ("192.0.2.7:4433", "no address of this host"),
    ],
)
async def test_an_agent_takes_no_server_elsewhere(tmp_path: Path, to: str, reason: str) -> None:
    async with two_hosts(tmp_path) as hosts, http_client(hosts.server) as client:
        report = await hosts.hand_over(to=Address.parse(to))
        assert report.outcome is Outcome.ROLLED_BACK
        assert reason in report.reason
        assert (await client.request("POST", "/echo", body=b"on")).body == b"on"


async def test_an_agent_that_was_told_where(tmp_path: Path) -> None:
    async with two_hosts(tmp_path) as hosts, http_client(hosts.server) as client:
        port = hosts.server.address.port
        only = Destinations((Place.parse(str(hosts.destination)),))
        async with agent_at(DESTINATION, port, hosts.identities, destinations=only) as agent:
            report = await hosts.hand_over(port=agent.address.port, to=at("127.0.0.3", port))
            assert f"--allow-address 127.0.0.3:{port}" in report.reason
            report = await hosts.hand_over(port=agent.address.port)
            assert report.outcome is Outcome.COMMITTED, report.reason
            assert (await client.request("POST", "/echo", body=b"on")).body == b"on"
