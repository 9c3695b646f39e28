"""The images of a container: in memory only, and carried while they are being written.

Images hold the keys of live connections. So they are in a file system of their own in memory
(tmpfs, mode 0700, not swapped where the kernel can promise that), which exists as long as the
relocation does: unmounting it wipes them. `ImageSender` reads what an engine writes there, and
sends it in pieces; `ImageReceiver` writes the pieces to a directory on the other host.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

import zstandard

from ..errors import EngineError, HandoverError
from ..link.messages import MAX_PIECE
from .engines.processes import is_alive
from .engines.program import run

DIRECTORY = Path("/run/quicferry/relocations")
"""Where images are."""

_MOUNT_LIMIT = 10.0
_LOOK_AGAIN = 0.004
"""Seconds between two looks at how far an image has grown."""
_LEVEL = 1


class Compression(enum.Enum):
    """How images are compressed on their way."""

    NONE = "none"
    ZSTD = "zstd"


class ImageDirectory:
    """A directory for images in memory; used as an asynchronous context manager.

    Args:
        parent: Where it is made. What was left there by processes that are gone is wiped.
        room: How much it may hold, in bytes; None for half of the host's memory.

    Attributes:
        path: The directory. What is written beside the images is wiped as well.
    """

    def __init__(self, parent: Path = DIRECTORY, *, room: int | None = None) -> None:
        self._parent = parent
        self._room = room
        self.path = parent / f"{os.getpid()}-{secrets.token_hex(8)}"

    @property
    def images(self) -> Path:
        """The directory for the images themselves."""
        return self.path / "images"

    @property
    def free(self) -> int:
        """How much can still be written, in bytes."""
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    async def __aenter__(self) -> Self:
        """Make it.

        Raises:
            EngineError: If that is not possible.
        """
        await wipe_leftovers(self._parent)
        try:
            self.path.mkdir(mode=0o700, parents=True)
        except OSError as exc:
            raise EngineError(
                f"cannot make {self.path}: {exc.strerror}; run this as root"
            ) from None
        try:
            await self._mount()
            self.images.mkdir(mode=0o700)
        except BaseException:
            await wipe(self.path)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await wipe(self.path)

    async def _mount(self) -> None:
        mount = ("mount", "-t", "tmpfs", "quicferry", str(self.path), "-o")
        options = "mode=0700,nosuid,nodev,noexec"
        if self._room is not None:
            options += f",size={self._room}"
        try:
            await run(*mount, f"{options},noswap", limit=_MOUNT_LIMIT)
        except EngineError:  # kernels before 6.4 know no noswap
            await run(*mount, options, limit=_MOUNT_LIMIT)


async def wipe_leftovers(parent: Path = DIRECTORY) -> None:
    """Wipe the directories of processes that are gone."""
    for path in _leftovers(parent):
        await wipe(path)


def _leftovers(parent: Path) -> list[Path]:
    owned = ((path, path.name.partition("-")[0]) for path in parent.glob("*-*"))
    return [path for path, pid in owned if pid.isdecimal() and not is_alive(int(pid))]


async def wipe(path: Path) -> None:
    """Wipe a directory for images, if it is there."""
    with contextlib.suppress(EngineError):  # it was not mounted
        await run("umount", "--lazy", str(path), limit=_MOUNT_LIMIT)
    with contextlib.suppress(OSError):
        path.rmdir()  # noqa: ASYNC240 (an empty directory in memory: no wait)


SendPiece = Callable[[str, bytes], Awaitable[None]]
"""Sends a piece of an image, by the image's name; waits while too much is on its way."""


class ImageSender:
    """Sends what is written to a directory.

    Args:
        directory: The images.
        grows: Whether an image, by its relative name, is only ever appended to.
        compression: How pieces are compressed.

    Attributes:
        read: Bytes of images that were sent.
    """

    def __init__(
        self,
        directory: Path,
        grows: Callable[[str], bool],
        compression: Compression,
    ) -> None:
        self._directory = directory
        self._grows = grows
        compress = zstandard.ZstdCompressor(level=_LEVEL).compress
        self._compress = compress if compression is Compression.ZSTD else bytes
        self._sent: dict[str, int] = {}
        self.read = 0

    async def follow(self, writer: asyncio.Future[None], send: SendPiece) -> None:
        """Send what only grows, while it is being written.

        Args:
            writer: Is done when nothing more is written.
            send: Sends a piece.
        """
        while not writer.done():
            began_at = time.monotonic()
            for name in self._names():
                if self._grows(name):
                    await self._send_rest(name, send)
            left = began_at + _LOOK_AGAIN - time.monotonic()
            await asyncio.wait(
                [writer], timeout=max(left, 0.0)
            )  # others have their turn in any case

    async def finish(self, send: SendPiece) -> None:
        """Send everything that was not sent yet, now that nothing more is written."""
        for name in self._names():
            await self._send_rest(name, send)

    def _names(self) -> list[str]:
        found = (path for path in self._directory.rglob("*") if path.is_file())
        return sorted(path.relative_to(self._directory).as_posix() for path in found)

    async def _send_rest(self, name: str, send: SendPiece) -> None:
        for piece in self._unsent(name):
            await send(name, self._compress(piece))

    def _unsent(self, name: str) -> Iterator[bytes]:
        """Yield what is there of an image and was not sent yet; also nothing, the first time."""
        with (self._directory / name).open("rb", buffering=0) as file:
            while True:
                piece = os.pread(file.fileno(), MAX_PIECE, self._sent.get(name, 0))
                if not piece and name in self._sent:
                    return
                self._sent[name] = self._sent.get(name, 0) + len(piece)
                self.read += len(piece)
                yield piece


class ImageReceiver:
    """Writes images to a directory as they come.

    Args:
        directory: Where to.
        compression: How pieces were compressed.
    """

    def __init__(self, directory: Path, compression: Compression) -> None:
        self._directory = directory
        self._decompressor = (
            zstandard.ZstdDecompressor() if compression is Compression.ZSTD else None
        )
        self._files: dict[str, int] = {}
        self._sizes: dict[str, int] = {}

    def take(self, name: str, data: bytes) -> None:
        """Append a piece to an image.

        Args:
            name: The image's name.
            data: The piece, compressed.

        Raises:
            HandoverError: If it cannot be written, or is none.
        """
        if name not in self._files:
            self._files[name] = self._open(name)
        try:
            piece = memoryview(self._decompress(data))
            self._sizes[name] = self._sizes.get(name, 0) + len(piece)
            while piece:
                piece = piece[os.write(self._files[name], piece) :]
        except OSError as exc:
            raise HandoverError(
                f"the images of the container cannot be written: {exc.strerror}; give this host "
                "more memory, or move a smaller container"
            ) from None

    def check(self) -> None:
        """Check that the images are there as they have come; CRIU reads on and on otherwise.

        Raises:
            HandoverError: If one is not.
        """
        for name, size in self._sizes.items():
            path = self._directory / name
            found = path.stat().st_size if path.exists() else 0
            if found != size:
                raise HandoverError(
                    f"the image {name} has {found} bytes, and {size} have come: something else "
                    "than quicferry writes there"
                )

    def close(self) -> None:
        """Close the files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _open(self, name: str) -> int:
        path = PurePosixPath(name)
        is_relative = path.parts and not path.is_absolute() and ".." not in path.parts
        if not is_relative or len(path.parts) > 2 or "\0" in name:
            raise HandoverError("an image has a name that leads somewhere else")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        target = self._directory / path
        try:
            target.parent.mkdir(mode=0o700, exist_ok=True)
            return os.open(target, flags, 0o600)
        except OSError as exc:
            raise HandoverError(f"an image cannot be written: {exc.strerror}") from None

    def _decompress(self, data: bytes) -> bytes:
        if self._decompressor is None:
            return data
        try:
            # Where a frame says how large its content is, that is believed instead of the limit.
            if zstandard.frame_content_size(data) > MAX_PIECE:
                raise zstandard.ZstdError("too large")
            return self._decompressor.decompress(data, max_output_size=MAX_PIECE)
        except zstandard.ZstdError:
            raise HandoverError("a piece of an image is damaged") from None
