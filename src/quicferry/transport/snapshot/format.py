"""The binary form of a connection snapshot: an envelope, and values that are checked when read.

Ten bytes, then one MessagePack map. Its entries are the fields of one dataclass
(`snapshot_records.Snapshot`); every record inside is an array of its fields in order. Types and
bounds stand beside the fields, and are checked before anything is made of them: the reader asks
for one value after the other, and for an array only where one belongs, of a length that is
allowed there. So what data costs in time and memory is bounded by its own size, and by
`MOST_VALUES`, whatever it holds.
"""

from __future__ import annotations

import struct
import types
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import msgpack

from quicferry.protocol import QuicferryError

MAGIC = b"QFCS"
FORMAT_VERSION = 2
MAX_SNAPSHOT_SIZE = 64 << 20
"""In bytes; a connection that holds more data than that is not frozen."""
MOST_VALUES = 1 << 21
"""Values in all lists together; some tenths of a second to read."""

_HEADER = struct.Struct("!4sHI")
_RecordT = TypeVar("_RecordT")
_SCALARS = frozenset({int, float, bool, bytes, str, type(None)})
_MALFORMED = (ValueError, OverflowError, msgpack.UnpackException)
_NIL = 0xC0
_LONGEST_HEADER = 5
_LONGEST_SCALAR = 9
_UNITS = {bytes: 1, str: 4}
"""Bytes of what `Within` counts."""


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
    body = memoryview(data)[_HEADER.size :]
    if zlib.crc32(body) != checksum:
        raise SnapshotError("the snapshot is damaged or incomplete; transfer it again")
    record: Any = kind
    problem = ""
    try:
        result: _RecordT = _keyed_reader(record)(_Source(body))
    except SnapshotError as exc:
        problem = str(exc)
    if problem:
        raise SnapshotError(f"the snapshot cannot be used: {problem}")
    return result


def prepare(kind: Any) -> None:
    """Get ready to read records of a kind; the first one takes some milliseconds otherwise."""
    _reader(kind)
    _keyed_reader(kind)


def largest(hint: Any) -> int:
    """Return how many bytes the MessagePack form of a type can take, by the bounds beside it."""
    origin = get_origin(hint)
    if origin is Annotated and (kind := get_args(hint)[0]) not in (int, float):
        most = int(get_args(hint)[1].most)
        unit = largest(get_args(kind)[0]) if get_origin(kind) is tuple else _UNITS[kind]
        return _LONGEST_HEADER + most * unit
    if origin in (Annotated, Union, types.UnionType):
        return max(largest(arg) for arg in get_args(hint) if not isinstance(arg, Within))
    if is_dataclass(hint):
        return _LONGEST_HEADER + sum(largest(field) for _, field in _hints(hint))
    return _LONGEST_SCALAR


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
    source = _Source(data)
    result: _RecordT = _reader(record)(source)
    source.end()
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


class _Source:
    """What values are read from, one after the other.

    What msgpack raises holds the content, so it must not become the cause of another error.
    """

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data
        self._left = MOST_VALUES
        self._unpacker = msgpack.Unpacker(
            None,
            read_size=1,
            max_buffer_size=max(1, len(data)),
            max_array_len=0,
            max_map_len=0,
            max_ext_len=0,
        )
        self._unpacker.feed(data)
        self.unpack: Callable[[], Any] = self._unpacker.unpack
        """Return the next value, which must not be a list; raises one of `_MALFORMED`."""

    def is_nil(self) -> bool:
        """Return whether the next value is nil."""
        at: int = self._unpacker.tell()
        return at < len(self._data) and self._data[at] == _NIL

    def array(self) -> int:
        """Return the length of an array that begins here, -1 if none does."""
        return self._header(self._unpacker.read_array_header)

    def map(self) -> int:
        """Return the length of a map that begins here, -1 if none does."""
        return self._header(self._unpacker.read_map_header)

    def spend(self, values: int) -> None:
        """Take note that so many values follow; raises `SnapshotError` if they are too many."""
        self._left -= values
        if self._left < 0:
            raise SnapshotError("has too many values")

    def end(self) -> None:
        """Check that nothing follows; raises `SnapshotError`."""
        if self._unpacker.tell() != len(self._data):
            raise SnapshotError("has something behind its end")

    def _header(self, read: Callable[[], int]) -> int:
        try:
            return read()
        except _MALFORMED:
            return -1


_Reader = Callable[[_Source], Any]


@cache
def _reader(hint: Any) -> _Reader:
    """Return the function that reads a value of a type, and raises `SnapshotError`."""
    origin = get_origin(hint)
    if origin is Annotated:
        kind, bounds = get_args(hint)
        if kind in (int, float):
            return _number(kind, bounds)
        if get_origin(kind) is tuple:
            return _listed(get_args(kind)[0], bounds)
        return _sized(_reader(kind), bounds)
    if origin in (Union, types.UnionType):
        inner = _reader(next(arg for arg in get_args(hint) if arg is not type(None)))
        return lambda source: source.unpack() if source.is_nil() else inner(source)
    if origin is tuple:
        return _listed(get_args(hint)[0], Within(0, MOST_VALUES))
    return _record(hint) if is_dataclass(hint) else _exactly(hint)


def _exactly(kind: type) -> _Reader:
    def read(source: _Source) -> object:
        value: object
        try:
            value = source.unpack()
        except _MALFORMED:
            value = _Source  # which is of no type that is wanted
        if type(value) is not kind:
            raise SnapshotError("is of the wrong type")
        return value

    return read


def _number(kind: Any, bounds: Within) -> _Reader:
    least, most = bounds.least, bounds.most
    inner = _exactly(kind)

    def read(source: _Source) -> object:
        value: Any = inner(source)
        if not least <= value <= most:
            raise SnapshotError("is out of bounds")
        return value

    return read


def _sized(inner: _Reader, bounds: Within) -> _Reader:
    least, most = bounds.least, bounds.most

    def read(source: _Source) -> object:
        result = inner(source)
        if not least <= len(result) <= most:
            raise SnapshotError("is out of bounds")
        return result

    return read


def _listed(hint: Any, bounds: Within) -> _Reader:
    inner, weight = _reader(hint), _weight(hint)
    least, most = bounds.least, bounds.most

    def read(source: _Source) -> object:
        length = source.array()
        if length < 0:
            raise SnapshotError("is not a list")
        if not least <= length <= most:
            raise SnapshotError("is out of bounds")
        source.spend(length * weight)
        return tuple([inner(source) for _ in range(length)])

    return read


@cache
def _weight(hint: Any) -> int:
    """Return how many values a value of this type is made of, without those in its lists."""
    if get_origin(hint) in (Annotated, Union, types.UnionType):
        return _weight(next(arg for arg in get_args(hint) if arg is not type(None)))
    if is_dataclass(hint):
        return sum(_weight(field) for _, field in _hints(hint))
    return 1


def _fields(kind: Any) -> Iterator[tuple[str, _Reader]]:
    """Yield the names and the readers of a record's fields."""
    for name, hint in _hints(kind):
        yield name, _reader(hint)


def _hints(kind: Any) -> Iterable[tuple[str, Any]]:
    return get_type_hints(kind, include_extras=True).items()


def _record(kind: Any) -> _Reader:
    members = tuple(_fields(kind))

    def read(source: _Source) -> object:
        if source.array() != len(members):
            raise SnapshotError(f"is not a record of {len(members)} fields")
        content: list[object] = []
        name = ""
        try:
            for name, inner in members:  # noqa: B007 (for the error)
                content.append(inner(source))
        except SnapshotError as exc:
            raise SnapshotError(f"{name} {exc}") from None
        return kind(*content)

    return read


@cache
def _keyed_reader(kind: Any) -> _Reader:
    """Return the function that reads a whole record from a map of its fields in order."""
    members = tuple(_fields(kind))
    key = _exactly(str)

    def read(source: _Source) -> object:
        if source.map() != len(members):
            raise SnapshotError("it does not hold the fields of a connection")
        content: list[object] = []
        for name, inner in members:
            if key(source) != name:
                raise SnapshotError("it does not hold the fields of a connection")
            try:
                content.append(inner(source))
            except SnapshotError as exc:
                raise SnapshotError(f"{name} {exc}") from None
        source.end()
        return kind(*content)

    return read
