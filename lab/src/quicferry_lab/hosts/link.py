"""A link between two hosts, and what all kinds of links have in common.

Each link is an interface at either host. A host has one address, which it has on each of its
interfaces, and a route for each of its neighbours: so a client keeps its address when it talks to a
server on another link.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod

from quicferry_lab.emulation import PathSpec
from quicferry_lab.hosts.errors import LabError
from quicferry_lab.hosts.host import Host

MTU = 1500
_WAITING_PACKETS = 10_000
"""That an interface holds until they are carried on: more than a path's queue ever does."""


class Backend(enum.Enum):
    """What makes a link what it is."""

    VETH = "veth with tc tbf"
    """The kernel's virtual Ethernet; can have a rate and a queue, and nothing else."""
    NETEM = "veth with tc netem"
    """The same with the kernel's emulator, where the kernel has it."""
    ROUTER = "user-space router over TUN"
    """The laboratory's own, where it has not."""


class Link(ABC):
    """A link between two hosts; made by `Lab.connect`.

    Attributes:
        near: One end.
        far: The other end.
        path: What happens to packets from `near` to `far`.
        back: What happens to packets from `far` to `near`.
        backend: What carries it.
    """

    backend: Backend

    def __init__(self, near: Host, far: Host, path: PathSpec, back: PathSpec) -> None:
        self.near = near
        self.far = far
        self.path = path
        self.back = back

    async def set(self, path: PathSpec, back: PathSpec | None = None) -> None:
        """Change what happens to packets from now on; those under way are not touched.

        Args:
            path: From `near` to `far`.
            back: From `far` to `near`; None for the same.

        Raises:
            LabError: If the link's backend cannot do that.
        """
        back = back or path
        await self._apply(path, back)
        self.path, self.back = path, back

    @abstractmethod
    async def cut(self) -> None:
        """Lose every packet from now on, in both directions, without telling anyone."""

    @abstractmethod
    async def restore(self) -> None:
        """Undo a cut."""

    @abstractmethod
    async def _apply(self, path: PathSpec, back: PathSpec) -> None: ...


def interface(peer: Host) -> str:
    """Return the name of the interface to a host, at its peers."""
    return f"to-{peer.name}"


async def attach(host: Host, peer: Host) -> None:
    """Give a host its address on the link to a peer, and the route.

    Raises:
        LabError: If that fails.
    """
    device = interface(peer)
    commands = (
        f"addr replace {host.address}/32 dev {device}",
        f"link set {device} mtu {MTU} txqueuelen {_WAITING_PACKETS} up",
        f"route replace {peer.address}/32 dev {device} src {host.address}",
    )
    await host.run(["ip", "-batch", "-"], stdin="\n".join(commands).encode(), limit=10)


def refuse(path: PathSpec, what: str) -> LabError:
    """Return the error for a path that a backend cannot do."""
    return LabError(
        f"a link of {what} cannot do {path}; connect the hosts with such a path to begin with"
    )
