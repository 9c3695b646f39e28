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
from relocation import test_criu_images
from relocation.test_criu_images import credentials, encode, varint
from relocation.test_podman_rights import CONFIG, SPEC

from fuzzing.carried import Change, changed, changes
from fuzzing.harness import FindingError, Steps, Target
from fuzzing.quic import damaged
from quicferry.relocation.container.engines.criu_images import LARGEST_IMAGE, Rights, check_images
from quicferry.relocation.container.engines.podman_facts import Archive
from quicferry.relocation.container.engines.podman_rights import Given
from quicferry.relocation.container.images import Compression, ImageReceiver
from quicferry.relocation.errors import EngineError, HandoverError

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


# What CRIU's images and Podman's files say that processes may do

_RECORDED = Path(test_criu_images.__file__).with_name("recorded") / "criu-core.img"
_CORE = _RECORDED.read_bytes()
_RIGHTS = Rights(61000, (61000,), frozenset({"CAP_NET_BIND_SERVICE"}), True)
_CORE_HEADER = 12
_numbers = st.sampled_from([0, 1, 61000, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
_credentials: st.SearchStrategy[dict[int, Any]] = st.dictionaries(
    st.integers(1, 20),
    _numbers
    | st.binary(max_size=20)
    | st.builds(
        lambda number, times: varint(number) * times,  # packed
        _numbers,
        st.sampled_from([1, 2, 3, 100, 30_000]),
    ),
    max_size=8,
)


def core(creds: dict[int, Any], thread: dict[int, Any], task: dict[int, Any]) -> bytes:
    whole = {**credentials(), **creds}
    message = encode({3: {1: 1, **task}, 5: {10: whole, 11: 2, **thread}})
    return _with_header(message)


def _with_header(message: bytes) -> bytes:
    return _CORE[: _CORE_HEADER - 4] + len(message).to_bytes(4, "little") + message


_few: st.SearchStrategy[dict[int, Any]] = st.dictionaries(
    st.integers(1, 12), _numbers | st.binary(max_size=20), max_size=3
)
_cores = st.one_of(
    st.builds(core, _credentials, _few, _few),
    damaged(st.just(_CORE)),
    damaged(st.just(_CORE[_CORE_HEADER:])).map(_with_header),
    st.builds(
        lambda unit, times: _with_header(unit * times),
        st.binary(min_size=1, max_size=4),
        st.sampled_from([1, 1000, 20_000]),
    ),
).map(lambda image: image[: LARGEST_IMAGE + 1])


def _play_core(value: bytes) -> Steps:
    yield
    with suppress(EngineError):
        check_images([("core-1.img", value)], _RIGHTS)


_GIVEN = Given("61000:61000", Path("/run/quicferry/app"), (Path("/srv/data"),), Path("/var/lib/x"))
_pairs = st.tuples(
    st.builds(changed, st.just(CONFIG), changes) | st.just(CONFIG),
    st.builds(changed, st.just(SPEC), changes),
)


def _play_rights(value: tuple[Any, Any]) -> Steps:
    members = [
        _member(name, part, [])
        for name, part in zip(("config.dump", "spec.dump"), value, strict=True)
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.tar"
        path.write_bytes(
            archive([*members, ("checkpoint/core-1.img", tarfile.REGTYPE, core({}, {}, {}))])
        )
        yield
        with suppress(EngineError):
            Archive.read(path).check(path, _GIVEN)


TARGETS = [
    Target("criu-images", _cores, _play_core),
    Target("rights", _pairs, _play_rights),
    Target("images", _images, _play_images),
    Target("archives", _archives, _play_archive),
]
