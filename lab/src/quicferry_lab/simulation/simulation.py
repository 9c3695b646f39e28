"""One simulated world: a network, its observer, and seeded randomness, as a context manager."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection

from quicferry.transport import Connection

from .endpoint import Application, Client, Endpoint, ServerHost
from .nat import Nat, NatKind
from .network import Network, Path, Sharing, SimulatedAddress
from .observer import Observer
from .randomness import seeded


class Simulation:
    """A world in virtual time. Connections may only be made and used inside of `with`.

    Args:
        seed: Of everything random in it: the same seed gives the same bytes at the same times.
        path: Between all addresses that have no path of their own.
        sharing: Whether clients of one host share their paths.
        observer: What watches; None for one that keeps every packet.

    Attributes:
        network: The network.
        observer: What was sent.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        path: Path | None = None,
        sharing: Sharing = Sharing.PER_ADDRESS,
        observer: Observer | None = None,
    ) -> None:
        self.network = Network(seed, default_path=path, sharing=sharing)
        self.observer = observer or Observer()
        self._seed = seed
        self._context = ExitStack()
        self._clients = 0

    def __enter__(self) -> Self:
        self._context.enter_context(seeded(self._seed, lambda: self.network.now))
        self._context.enter_context(self.observer.watching())
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._context.close()

    def server(
        self,
        address: SimulatedAddress,
        configuration: QuicConfiguration,
        *,
        connection_type: type[QuicConnection] = Connection,
        application: Callable[[Endpoint], Application] | None = None,
    ) -> ServerHost:
        """Start a server that listens at `address`."""
        return ServerHost(
            self.network, self.observer, address, configuration, connection_type, application
        )

    def client(
        self,
        address: SimulatedAddress,
        configuration: QuicConfiguration,
        *,
        connection_type: type[QuicConnection] = Connection,
        nat: NatKind | None = None,
        external: SimulatedAddress | None = None,
    ) -> Client:
        """A client, not yet connected.

        Args:
            address: Its address.
            configuration: Of its connection.
            connection_type: The connection's class.
            nat: The kind of NAT before it, if any.
            external: Its address on the other side of the NAT.
        """
        self._clients += 1
        translator = None
        if nat is not None:
            assert external is not None
            translator = Nat(self.network, nat, external)
        return Client(
            f"client-{self._clients - 1}",
            self.network,
            self.observer,
            connection_type(configuration=configuration),
            address,
            translator,
        )
