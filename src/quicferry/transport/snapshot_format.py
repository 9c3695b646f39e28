"""The binary form of a connection snapshot: an envelope, and values that are checked when read.

Ten bytes, then one MessagePack map. Its entries are the fields of one dataclass
(`snapshot_records.Snapshot`); every record inside is an array of its fields in order. Types and
bounds stand beside the fields, and are checked before anything is made of them.
"""

from __future__ import annotations

import struct
import types
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgpack

from quicferry.protocol import QuicferryError

MAGIC = b"QFCS"
FORMAT_VERSION = 2
MAX_SNAPSHOT_SIZE = 64 << 20
"""In bytes; a connection that holds more data than that is not frozen."""

_HEADER = struct.Struct("!4sHI")
_RecordT = TypeVar("_RecordT")
_SCALARS = frozenset({int, float, bool, bytes, str, type(None)})
_Reader = Callable[[object], Any]


class SnapshotError(QuicferryError):
    """A connection cannot be frozen now, or a snapshot cannot be used; the text says why."""


@dataclass(frozen=True)
class Form:
    """What the envelope says about a record.

    Attributes:
        magic: Its first four bytes.
        version: The version of its fields.
        name: What errors call it.
    """

    magic: bytes
    version: int
    name: str


CONNECTION = Form(MAGIC, FORMAT_VERSION, "a connection snapshot")


@dataclass(frozen=True)
class Within:
    """The bounds of a number, or of the length of bytes, text or a list."""

    least: float
    most: float


def encode(record: Any, form: Form = CONNECTION) -> bytes:
    """Return the binary form of a dataclass.

    Raises:
        SnapshotError: If it is longer than `MAX_SNAPSHOT_SIZE`.
    """
    content = {name: _plain(value) for name, value in vars(record).items()}
    body: bytes = msgpack.packb(content)
    if _HEADER.size + len(body) > MAX_SNAPSHOT_SIZE:
        raise SnapshotError(
            f"the connection holds more than a snapshot can carry ({MAX_SNAPSHOT_SIZE} bytes); "
            "freeze it when less is waiting to be sent or read"
        )
    return _HEADER.pack(form.magic, form.version, zlib.crc32(body)) + body


def decode(data: bytes, kind: type[_RecordT], form: Form = CONNECTION) -> _RecordT:
    """Return the record that `data` holds, with every type and bound checked.

    Raises:
        SnapshotError: If it does not hold one. The text never quotes the content.
    """
    if len(data) > MAX_SNAPSHOT_SIZE:
        raise SnapshotError(f"a snapshot takes at most {MAX_SNAPSHOT_SIZE} bytes, not {len(data)}")
    if len(data) < _HEADER.size or not data.startswith(form.magic):
        raise SnapshotError(f"this is not {form.name}")
    _, version, checksum = _HEADER.unpack_from(data)
    if version != form.version:
        raise SnapshotError(
            f"the snapshot has format version {version}, and this quicferry reads version "
            f"{form.version}; run the same quicferry on both hosts"
        )
    body = data[_HEADER.size :]
    if zlib.crc32(body) != checksum:
        raise SnapshotError("the snapshot is damaged or incomplete; transfer it again")
    content = _unpack(body)
    record: Any = kind
    if not isinstance(content, dict) or list(content) != [item.name for item in fields(record)]:
        raise SnapshotError("the snapshot does not hold the fields of a connection")
    problem = ""
    try:
        result: _RecordT = _reader(record)(list(content.values()))
    except SnapshotError as exc:
        problem = str(exc)
    if problem:
        raise SnapshotError(f"the snapshot cannot be used: {problem}")
    return result


def prepare(kind: Any) -> None:
    """Get ready to read records of a kind; the first one takes some milliseconds otherwise."""
    _reader(kind)


def pack(record: Any) -> bytes:
    """Return a dataclass as a MessagePack array of its fields in order, without an envelope."""
    content: bytes = msgpack.packb(_plain(record))
    return content


def unpack(data: bytes | memoryview, kind: type[_RecordT]) -> _RecordT:
    """Return the record that `pack` made `data` of, with every type and bound checked.

    Raises:
        SnapshotError: If it holds none. The text never quotes the content.
    """
    record: Any = kind
    result: _RecordT = _reader(record)(_unpack(data))
    return result


def pairs(ranges: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    """Return the ranges one by one."""
    return zip(ranges[::2], ranges[1::2], strict=True)


def check_ranges(ranges: tuple[int, ...], start: int, stop: int) -> None:
    """Check that these are ranges between `start` and `stop`.

    Raises:
        SnapshotError: If they are not.
    """
    demand(len(ranges) % 2 == 0, "half a range")
    demand(all(before < after for before, after in pairwise(ranges)), "ranges that overlap")
    demand(not ranges or (start <= ranges[0] and ranges[-1] <= stop), "a range beyond its bounds")


def demand(condition: object, otherwise: str) -> None:
    """Check that the fields of a record go together; raises `SnapshotError`."""
    if not condition:
        raise SnapshotError(f"has {otherwise}")


def _plain(value: Any) -> Any:
    if type(value) in _SCALARS:
        return value
    items = value if type(value) is tuple else vars(value).values()
    return [_plain(item) for item in items]


def _unpack(body: bytes | memoryview) -> object:
    # What msgpack raises holds the content, so it must not become the cause of another error.
    try:
        content: object = msgpack.unpackb(body)
    except (ValueError, OverflowError, msgpack.UnpackException):
        content = None
    return content


@cache
def _reader(hint: Any) -> _Reader:
    """Return the function that reads a value of a type, and raises `SnapshotError`."""
    origin = get_origin(hint)
    if origin is Annotated:
        kind, bounds = get_args(hint)
        return _number(kind, bounds) if kind in (int, float) else _sized(_reader(kind), bounds)
    if origin in (Union, types.UnionType):
        inner = _reader(next(arg for arg in get_args(hint) if arg is not type(None)))
        return lambda value: None if value is None else inner(value)
    if origin is tuple:
        return _listed(_reader(get_args(hint)[0]))
    return _record(hint) if is_dataclass(hint) else _exactly(hint)


def _exactly(kind: type) -> _Reader:
    def read(value: object) -> object:
        if type(value) is not kind:
            raise SnapshotError("is of the wrong type")
        return value

    return read


def _number(kind: Any, bounds: Within) -> _Reader:
    least, most = bounds.least, bounds.most

    def read(value: Any) -> object:
        if type(value) is not kind:
            raise SnapshotError("is of the wrong type")
        if not least <= value <= most:
            raise SnapshotError("is out of bounds")
        return value

    return read


def _sized(inner: _Reader, bounds: Within) -> _Reader:
    least, most = bounds.least, bounds.most

    def read(value: object) -> object:
        result = inner(value)
        if not least <= len(result) <= most:
            raise SnapshotError("is out of bounds")
        return result

    return read


def _listed(inner: _Reader) -> _Reader:
    def read(value: object) -> object:
        if type(value) is not list:
            raise SnapshotError("is not a list")
        return tuple([inner(item) for item in value])

    return read


def _record(kind: Any) -> _Reader:
    hints = get_type_hints(kind, include_extras=True)
    names, readers = list(hints), [_reader(hint) for hint in hints.values()]

    def read(value: object) -> object:
        if type(value) is not list or len(value) != len(readers):
            raise SnapshotError(f"is not a record of {len(readers)} fields")
        content: list[object] = []
        try:
            for inner, item in zip(readers, value, strict=True):
                content.append(inner(item))
        except SnapshotError as exc:
            raise SnapshotError(f"{names[len(content)]} {exc}") from None
        return kind(*content)

    return read
