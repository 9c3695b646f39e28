"""What comes with a container: its images, and Podman's archive of them."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import zstandard
from hypothesis import strategies as st

from fuzzing.carried import Change, changed, changes
from fuzzing.harness import FindingError, Steps, Target
from fuzzing.quic import damaged
from quicferry.relocation.engines.podman_facts import Archive
from quicferry.relocation.errors import EngineError, HandoverError
from quicferry.relocation.images import Compression, ImageReceiver

# Images


def _zstd(content: bytes, times: int) -> bytes:
    return zstandard.ZstdCompressor().compress(content * times)


_pieces = st.one_of(
    st.binary(max_size=100),
    st.builds(
        _zstd, st.binary(min_size=1, max_size=10), st.sampled_from([1, 1000, 1 << 20, 8 << 20])
    ),
    damaged(st.builds(_zstd, st.binary(max_size=100), st.just(10))),
)
_names = st.one_of(
    st.sampled_from(
        ["pages-1.img", "a/b", "a", "../x", "/x", ".", "..", "", "a/../../x", "a\0b", "a//b"]
    ),
    st.sampled_from(["x" * 300, "a/" + "x" * 255, "\udcff", "a/b/c", "./a", "a\nb"]),
    st.text(max_size=10),
)
_images = st.tuples(
    st.sampled_from(Compression), st.lists(st.tuples(_names, _pieces), min_size=1, max_size=8)
)


def _play_images(value: tuple[Compression, list[tuple[str, bytes]]]) -> Steps:
    compression, pieces = value
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        receiver = ImageReceiver(images, compression)
        yield
        try:
            for name, piece in pieces:
                with suppress(HandoverError):
                    receiver.take(name, piece)
                yield
            with suppress(HandoverError):
                receiver.check()
            yield
        finally:
            receiver.close()
        outside = [path for path in Path(folder).iterdir() if path != images]
        if outside:
            raise FindingError(f"{outside[0]} was written outside of the directory for images")


# Podman's archives

_IDENTITY = "0123456789abcdef" * 4
_CONFIG = {"id": _IDENTITY, "name": "app", "rootfsImageName": "localhost/app:1"}
_SPEC = {
    "mounts": [
        {"destination": "/run/quicferry", "source": "/run/quicferry/app", "type": "bind"},
        {"destination": "/data", "source": "/srv/data", "type": "bind"},
        {"destination": "/tmp", "source": "tmpfs", "type": "tmpfs"},
    ],
    "process": {"user": {"uid": 61000, "gid": 61000}},
}


Member = tuple[str, bytes, bytes]
"""Its name, its kind and its content."""


def _member(name: str, content: Any, changes: list[Change]) -> Member:
    # What JSON does not have, such as bytes, becomes a text.
    text = json.dumps(changed(content, changes), default=repr, skipkeys=True)
    return name, tarfile.REGTYPE, text.encode()


def archive(members: list[Member]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for name, kind, content in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            if kind == tarfile.REGTYPE:
                member.size = len(content)
            else:
                member.linkname = content[:90].decode("latin-1").replace("\0", "")
            archive.addfile(member, io.BytesIO(content))
    return made.getvalue()


_texts = st.builds(
    lambda unit, times: unit * times,
    st.sampled_from([b"[", b'{"a":', b"9", b"[],", b" ", b'"']),
    st.sampled_from([1, 1000, 1_000_000, 3 << 20]),
)
_members = st.one_of(
    st.builds(_member, st.just("config.dump"), st.just(_CONFIG), changes),
    st.builds(_member, st.just("spec.dump"), st.just(_SPEC), changes),
    st.tuples(st.sampled_from(["config.dump", "spec.dump", "x"]), st.just(tarfile.REGTYPE), _texts),
    st.tuples(
        st.sampled_from(["config.dump", "spec.dump"]),
        st.sampled_from([tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]),
        st.sampled_from([b"config.dump", b"spec.dump", b"/etc/passwd", b"x"]),
    ),
)
_good = [
    ("config.dump", tarfile.REGTYPE, json.dumps(_CONFIG).encode()),
    ("spec.dump", tarfile.REGTYPE, json.dumps(_SPEC).encode()),
]
_archives = st.one_of(
    st.lists(_members, max_size=3).map(lambda more: archive([*_good, *more])),
    st.lists(_members, max_size=3).map(archive),
    damaged(st.just(archive(_good))),
    st.binary(max_size=600),
)


def _play_archive(value: bytes) -> Steps:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.tar"
        path.write_bytes(value)
        yield
        with suppress(EngineError):
            found = Archive.read(path)
            texts = (found.name, found.image, str(found.socket), *map(str, found.sources))
            if any("\0" in text for text in texts) or not 0 <= min(found.user) < 1 << 32:
                raise FindingError(f"{found} got through")


TARGETS = [
    Target("images", _images, _play_images),
    Target("archives", _archives, _play_archive),
]
