"""What a container engine has to be able to do, so that a server can be moved with its container.

An engine is an existing program (runc, Podman) that is driven through its command line. Each end of
a relocation sees one container of it: the source a `SourceContainer`, which is stopped and written
to *images*, and the destination a `DestinationContainer`, which is made of them. Images are files
in a directory in memory (`container.images`), which are carried to the other host while they are
being written. Their names and their layout are the engine's own business.

The order of calls at the source, where only `dump` or `dump_lazily` stops the container::

    pre_dump*  ->  dump | dump_lazily  ->  resume | remove

`resume` is for a relocation that has failed: the container goes on as if nothing had happened.
`remove` is for one that was committed. The container runs at no time between the two.
"""

from __future__ import annotations

import enum
import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from quicferry.relocation.errors import EngineError


class Technique(enum.Enum):
    """How a container gets to another host."""

    COLD = "cold"
    """It is stopped, written, carried and restored."""
    PRE_COPY = "pre-copy"
    """Its memory is carried while it runs; then what has changed since, as with cold."""
    POST_COPY = "post-copy"
    """It is restored without its memory, which is fetched when it is needed."""
    HYBRID = "hybrid"
    """Pre-copy, and what has changed since is fetched as with post-copy."""

    @property
    def copies_before(self) -> bool:
        """Whether memory is carried before the container is stopped."""
        return self in (Technique.PRE_COPY, Technique.HYBRID)

    @property
    def copies_after(self) -> bool:
        """Whether memory is fetched after the container was restored."""
        return self in (Technique.POST_COPY, Technique.HYBRID)


SOCKET_DIRECTORY = "/run/quicferry"
"""Where the directory with the server's management socket is mounted in a container."""

SOCKET_NAME = "server.sock"
"""The name of the management socket in it."""

IMAGE_ANNOTATION = "io.quicferry.image"
"""The annotation of a container that says what it was made of; the same on both hosts."""


_CONTAINER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def check_container_name(name: str) -> None:
    """Check that a program can be given a name, and takes it for nothing else.

    Raises:
        EngineError: If not.
    """
    if not _CONTAINER_NAME.fullmatch(name):
        raise EngineError(
            f"{name!r} cannot be the name of a container: letters, digits, _, . and -, with a "
            "letter or digit first"
        )


@dataclass(frozen=True)
class PageTls:
    """What the two ends of a page transfer prove themselves with; each relocation has its own.

    Attributes:
        certificate: A self-signed certificate that both ends use and trust, PEM.
        key: Its private key, PEM.
    """

    certificate: Path
    key: Path


class LazyDump(ABC):
    """The memory of a stopped container, to be fetched; made by `SourceContainer.dump_lazily`.

    Attributes:
        port: The TCP port where exactly one client can fetch it.
    """

    port: int

    @abstractmethod
    async def wait(self) -> None:
        """Wait until everything was fetched, or the client has gone; the container stays stopped.

        Raises:
            EngineError: If not everything was fetched.
        """

    @abstractmethod
    async def abandon(self) -> None:
        """Let nobody fetch it any more; the container stays stopped."""


class LazyRestore(ABC):
    """A restored container that still fetches its memory."""

    @abstractmethod
    async def wait(self) -> None:
        """Wait until it has everything.

        Raises:
            EngineError: If it cannot get it any more; the container is lost then.
        """

    @abstractmethod
    def kill(self) -> None:
        """Fetch nothing any more; a container that still needs memory is lost."""


class Container(ABC):
    """A container with a quicferry server in it.

    Attributes:
        name: Its name, the same on both hosts.
        image: What it was made of, by `IMAGE_ANNOTATION` or the engine's own knowledge; empty if
            neither says.
        socket: The management socket of its server, as this host sees it.
    """

    name: str
    image: str
    socket: Path

    @abstractmethod
    async def remove(self) -> None:
        """End the container at once, and forget it. Nothing happens if it is gone already.

        Raises:
            EngineError: If that fails.
        """


class SourceContainer(Container):
    """A running container that is to be moved; made by `Engine.source`."""

    @abstractmethod
    async def memory(self) -> int:
        """Return how much memory its processes use, in bytes."""

    @abstractmethod
    async def pre_dump(self, images: Path) -> None:
        """Write its memory while it runs, for a later `dump` or `dump_lazily` into `images`.

        Raises:
            EngineError: If that fails; the container runs on.
        """

    @abstractmethod
    async def dump(self, images: Path) -> None:
        """Stop it and write everything, or what has changed since `pre_dump`.

        Raises:
            EngineError: If that fails; `resume` has to follow.
        """

    @abstractmethod
    async def dump_lazily(self, images: Path, tls: PageTls, host: str) -> LazyDump:
        """Stop it and write everything but its memory, which can be fetched at the address `host`.

        Raises:
            EngineError: If that fails; `resume` has to follow.
        """

    @abstractmethod
    async def resume(self) -> None:
        """Let it run on after whatever has happened to it. Nothing happens if it runs.

        Raises:
            EngineError: If that fails.
        """


class DestinationContainer(Container):
    """A container that is to be made of images; made by `Engine.destination`."""

    @abstractmethod
    async def restore(self, images: Path) -> None:
        """Make and start it.

        Raises:
            EngineError: If that fails; nothing is left of it.
        """

    @abstractmethod
    async def restore_lazily(self, images: Path, tls: PageTls, host: str, port: int) -> LazyRestore:
        """Make and start it; its memory is fetched at the TCP port `port` of `host`.

        Raises:
            EngineError: If that fails; nothing is left of it.
        """


class Engine(ABC):
    """A container engine of this host.

    Attributes:
        name: By which it is chosen.
        techniques: What it can do, where the kernel and CRIU can.
        room: How much memory images take at the most, as a multiple of the container's.
    """

    name: ClassVar[str]
    techniques: ClassVar[frozenset[Technique]]
    room: ClassVar[float] = 1.25

    @abstractmethod
    async def version(self) -> str:
        """Return the versions of the engine and of what it uses, for people to read.

        Raises:
            EngineError: If the engine is not there; the text says how to get it.
        """

    @abstractmethod
    async def ports(self) -> frozenset[int]:
        """Return the ports that servers are told in what containers are made of here."""

    @abstractmethod
    async def source(self, name: str) -> SourceContainer:
        """Return the running container called `name`.

        Raises:
            EngineError: If there is none, or it holds no quicferry server.
        """

    @abstractmethod
    async def interrupted(self, name: str) -> SourceContainer:
        """Return the container called `name`, which a relocation may have left stopped.

        Raises:
            EngineError: If there is none, or it holds no quicferry server.
        """

    @abstractmethod
    async def destination(self, name: str) -> DestinationContainer:
        """Return the container that may be made here under the name `name`.

        Raises:
            EngineError: If there is one already, or it cannot be made.
        """

    @abstractmethod
    async def discard(self, name: str) -> None:
        """End a container that was made of images here, whatever has become of it.

        Raises:
            EngineError: If that fails.
        """

    @abstractmethod
    def grows(self, name: str) -> bool:
        """Whether an image of this name is only ever appended to, so that it can be carried early.

        Args:
            name: Relative to the directory of images, with ``/`` between its parts.
        """
