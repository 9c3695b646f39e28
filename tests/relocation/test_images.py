"""Images are sent while they are written, and arrive as they were."""

from __future__ import annotations

import asyncio
import os
from fnmatch import fnmatch
from pathlib import Path

import pytest
import zstandard

from quicferry.relocation.container.images import (
    Compression,
    ImageReceiver,
    ImageSender,
    wipe_leftovers,
)
from quicferry.relocation.errors import HandoverError
from quicferry.relocation.link.messages import MAX_PIECE

COMPRESSIONS = pytest.mark.parametrize("compression", list(Compression), ids=lambda it: it.value)


def grows(name: str) -> bool:
    return fnmatch(name, "*/pages-*.img")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    (path / "final").mkdir(parents=True)
    return path


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@COMPRESSIONS
async def test_what_grows_is_sent_while_it_grows(
    source: Path, target: Path, compression: Compression
) -> None:
    receiver = ImageReceiver(target, compression)
    arrived = asyncio.Condition()

    async def send(name: str, data: bytes) -> None:
        receiver.take(name, data)
        async with arrived:
            arrived.notify_all()

    async def write() -> None:
        """Append the next piece when the one before has arrived, so each is sent by itself."""
        (source / "final" / "core.img").write_bytes(b"small")
        original, copy = (each / "final" / "pages-1.img" for each in (source, target))
        for number in range(5):
            with original.open("ab") as pages:
                pages.write(os.urandom(MAX_PIECE // 2) + b"%d" % number)
            async with arrived:
                await arrived.wait_for(lambda: _size(copy) == _size(original))

    sender = ImageSender(source, grows, compression)
    async with asyncio.timeout(20):
        await sender.follow(asyncio.ensure_future(write()), send)
    assert not (target / "final" / "core.img").exists()
    await sender.finish(send)
    receiver.check()
    receiver.close()
    assert content(target) == content(source)
    assert sender.read == sum(map(len, content(source).values()))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@COMPRESSIONS
async def test_empty_and_large_images_arrive(
    source: Path, target: Path, compression: Compression
) -> None:
    (source / "final" / "empty.img").touch()
    (source / "final" / "zeros.img").write_bytes(bytes(3 * MAX_PIECE + 1))
    (source / "final" / "random.img").write_bytes(os.urandom(2 * MAX_PIECE))
    receiver = ImageReceiver(target, compression)
    sizes: list[int] = []

    async def send(name: str, data: bytes) -> None:
        sizes.append(len(data))
        receiver.take(name, data)

    await ImageSender(source, grows, compression).finish(send)
    receiver.check()
    receiver.close()
    assert content(target) == content(source)
    assert max(sizes) <= 2 * MAX_PIECE
    assert all(path.stat().st_mode & 0o077 == 0 for path in (target / "final").iterdir())


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "a/../../evil", "a/b/c", ""])
def test_no_image_leads_elsewhere(target: Path, name: str) -> None:
    with pytest.raises(HandoverError, match="leads somewhere else"):
        ImageReceiver(target, Compression.NONE).take(name, b"x")
    assert not (target.parent / "evil").exists()


def test_no_image_follows_a_link(target: Path) -> None:
    outside = target.parent / "outside"
    (target / "image").symlink_to(outside)
    with pytest.raises(HandoverError, match="cannot be written"):
        ImageReceiver(target, Compression.NONE).take("image", b"x")
    assert not outside.exists()


@pytest.mark.parametrize("data", [b"damaged", b""])
def test_damaged_pieces_are_refused(target: Path, data: bytes) -> None:
    with pytest.raises(HandoverError, match="damaged"):
        ImageReceiver(target, Compression.ZSTD).take("image", data)


def test_a_piece_cannot_become_arbitrarily_large(target: Path) -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 * MAX_PIECE))
    assert len(bomb) < MAX_PIECE
    with pytest.raises(HandoverError, match="damaged"):
        ImageReceiver(target, Compression.ZSTD).take("image", bomb)


@pytest.mark.parametrize("size", [0, 3, 5])
def test_images_that_have_changed_are_noticed(target: Path, size: int) -> None:
    receiver = ImageReceiver(target, Compression.NONE)
    receiver.take("image", b"four")
    receiver.check()
    os.truncate(target / "image", size)
    with pytest.raises(HandoverError, match=f"image has {size} bytes, and 4"):
        receiver.check()
    receiver.close()


async def test_what_processes_that_are_gone_have_left_is_wiped(tmp_path: Path) -> None:
    """Nothing else is: others are at work beside this process."""
    gone = await asyncio.create_subprocess_exec("true")
    await gone.wait()
    living, left = f"{os.getpid()}-0123", f"{gone.pid}-0123"
    others = [living, "x-0123", f"{gone.pid}", "-0123"]
    for name in (left, *others):
        (tmp_path / name).mkdir()
    await wipe_leftovers(tmp_path)
    assert not (tmp_path / left).exists()
    assert all((tmp_path / name).exists() for name in others)
    await wipe_leftovers(tmp_path / "nowhere")
