"""A server whose whole process is carried to another host, as with a container.

A `Suspension` begins when the server is ready to be moved (`Server.imminent`)::

    suspension = server.suspension()
    farewells = suspension.suspend(address)  # silent from here on; the process may be frozen
    suspension.resume()                      # it goes on here, as if nothing had happened; or
    suspension.appear(address)               # it is on another host, and still silent
    suspension.activate()                    # it lives: the original has been given up
    suspension.settle()                      # the original is known to be gone for good

Unlike in a hand-over, requests go on running: they are part of the process. While it is silent the
application may do its work; what it writes waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from quicferry.io import BindError, ConnectionProtocol, ConnectionRouter, forward_nowhere
from quicferry.protocol import Address, MigrationError
from quicferry.transport import (
    NetworkAddress,
    SnapshotError,
    activate,
    become_copy,
    commit,
    fall_silent,
    last_words,
    resume_after_freeze,
)

from .errors import RelocationError, RelocationErrorCode
from .relocator import MIGRATED, Relocator


@dataclass(frozen=True)
class Farewell:
    """A datagram that closes a connection which cannot come along, to be sent when the server goes.

    Attributes:
        source: Where it has to come from.
        destination: The client.
        data: The datagram.
    """

    source: NetworkAddress
    destination: NetworkAddress
    data: bytes = field(repr=False)


class Suspension:
    """The connections of a server that is carried as a whole; made by `Server.suspension`.

    Args:
        relocator: Of the server.
        router: Of the server.
    """

    def __init__(self, relocator: Relocator, router: ConnectionRouter) -> None:
        self._loop = asyncio.get_running_loop()
        self._relocator = relocator
        self._router = router
        self._address = router.endpoint.address
        self._moving: Mapping[str, ConnectionProtocol] = {}
        self._staying: dict[str, ConnectionProtocol] = {}

    @property
    def connections(self) -> tuple[str, ...]:
        """The ids of the connections that come along, after `suspend`."""
        return tuple(self._moving)

    @property
    def left(self) -> tuple[str, ...]:
        """The ids of those that cannot come along, after `suspend`."""
        return tuple(self._staying)

    def suspend(self, address: Address) -> list[Farewell]:
        """Fall silent, because the process is about to go to `address`.

        Returns:
            What clients are to be told that cannot come along.

        Raises:
            RelocationError: If the server is not prepared, clients would not find it at that
                address, or a connection cannot be frozen; the server goes on then.
        """
        if self._router.endpoint.others:
            raise RelocationError(
                RelocationErrorCode.CANNOT_FREEZE,
                "a server with several addresses cannot be carried; start it with one --bind, for "
                "IPv4 or for one IPv6 address",
            )
        self._relocator.check_destination(address)
        open_now = dict(self._relocator.connections())
        self._moving = self._relocator.freeze()
        self._staying = {
            name: protocol for name, protocol in open_now.items() if name not in self._moving
        }
        try:
            for name, protocol in self._moving.items():
                self._silence(name, protocol)
            farewells = [each for it in self._staying.values() for each in self._part_with(it)]
            # What is bound to an address of this host cannot be restored on another one.
            self._listen_at(_anywhere(self._address))
        except RelocationError:
            self.resume()
            raise
        return farewells

    def resume(self) -> None:
        """Let everything go on here, because the process does not go."""
        with contextlib.suppress(RelocationError):  # what it has now receives the same
            self._listen_at(self._address)
        for protocol in (*self._moving.values(), *self._staying.values()):
            if protocol.connection.is_sealed:
                host = self._router.berth(protocol).host or str(self._address.host)
                self._router.move(protocol, host)
                resume_after_freeze(protocol.connection, now=self._loop.time())
                protocol.replay_held()
                protocol.settle()
        self._relocator.resume()

    def drop(self) -> None:
        """Give all connections up, because nobody knows who owns them, and serve new clients."""
        with contextlib.suppress(RelocationError):
            self._listen_at(self._address)
        self._forget(*self._moving.values(), *self._staying.values())
        self._relocator.resume()

    def appear(self, address: Address) -> None:
        """Be at `address`, in silence.

        Raises:
            RelocationError: If that is not possible; the process has to end then.
        """
        anywhere = self._address.host.is_unspecified
        self._listen_at(_anywhere(address) if anywhere else address)
        now = self._loop.time()
        for name, protocol in self._moving.items():
            become_copy(protocol.connection)
            local = self._router.move(protocol, str(address.host))
            try:
                protocol.connection.network_switch(local, now=now)
            except MigrationError as exc:
                raise RelocationError(exc.code, f"connection {name}: {exc.code.value}") from exc

    def activate(self) -> tuple[str, ...]:
        """Let the connections live, because the original has been given up.

        Returns:
            The ids of those that could not come along.
        """
        left = self._relocator.reappear()
        self._forget(*self._staying.values())
        for protocol in self._moving.values():
            activate(protocol.connection, now=self._loop.time())
            protocol.replay_held()
            protocol.settle()
        return left

    def settle(self) -> None:
        """Lift the limit on packet numbers, because the original never comes back."""
        for protocol in self._moving.values():
            if protocol.closed_by is None:
                commit(protocol.connection)
                protocol.transmit()
        self._moving = {}

    def _forget(self, *protocols: ConnectionProtocol) -> None:
        for protocol in protocols:
            protocol.depart(forward_nowhere, MIGRATED)
            self._router.forget(protocol)

    def _silence(self, name: str, protocol: ConnectionProtocol) -> None:
        protocol.settle()
        try:
            fall_silent(protocol.connection, now=self._loop.time())
        except SnapshotError as exc:
            raise RelocationError(
                RelocationErrorCode.CANNOT_FREEZE, f"connection {name}: {exc}"
            ) from exc
        protocol.settle()  # its timer is off

    def _part_with(self, protocol: ConnectionProtocol) -> list[Farewell]:
        protocol.settle()
        source = self._router.berth(protocol).local
        try:
            words = last_words(
                protocol.connection,
                configuration=self._router.configuration,
                now=self._loop.time(),
                reason_phrase=MIGRATED,
            )
        except SnapshotError:
            protocol.close(reason_phrase=MIGRATED)  # it must not speak later
            return []
        protocol.settle()
        return [Farewell(source, destination, data) for data, destination in words]

    def _listen_at(self, address: Address) -> None:
        try:
            self._router.endpoint.settle_at(address)
        except BindError as exc:
            raise RelocationError(RelocationErrorCode.CANNOT_BIND, str(exc)) from exc


def _anywhere(address: Address) -> Address:
    """Return all addresses of a host, at the port of `address`."""
    return Address(type(address.host)(0), address.port)
