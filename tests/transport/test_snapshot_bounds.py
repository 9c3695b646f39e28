"""What a snapshot costs the one who reads it is bounded by its size, whatever it holds."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any

import msgpack
import pytest

from quicferry.transport import SnapshotError
from quicferry.transport.http3.state import HTTP3, Http3State
from quicferry.transport.snapshot.format import (
    CONNECTION,
    MOST_VALUES,
    Form,
    Within,
    decode,
    largest,
    pack,
    unpack,
)
from quicferry.transport.snapshot.records import Snapshot

SIZE = 1 << 20


def header(code: int, count: int) -> bytes:
    return struct.pack("!BI", code, count)


EMPTY_ARRAYS = header(0xDD, SIZE) + b"\x90" * SIZE
EMPTY_MAPS = header(0xDD, SIZE) + b"\x80" * SIZE
NESTED = b"\x91" * SIZE + b"\x90"
ENTRIES = header(0xDF, SIZE // 2) + b"\x00\x00" * (SIZE // 2)
ANNOUNCED = header(0xDD, 0xFFFFFFFF)
EXTENSION = header(0xC9, SIZE) + b"\x01" + bytes(SIZE)
COSTLY = [EMPTY_ARRAYS, EMPTY_MAPS, NESTED, ENTRIES, ANNOUNCED, EXTENSION]


def check_cost(read: Callable[[bytes], Any], data: bytes) -> None:
    """Check that data is refused, and that not much more than itself is held in memory."""
    tracemalloc.start()
    try:
        with pytest.raises(SnapshotError):
            read(data)
        assert tracemalloc.get_traced_memory()[1] < 3 * len(data) + (1 << 16)
    finally:
        tracemalloc.stop()


def in_each_place(kind: Any, form: Form, costly: bytes) -> Iterator[bytes]:
    """Yield a whole snapshot with something costly as each key, each value, and in the middle."""
    names = [msgpack.packb(item.name) for item in fields(kind)]
    start = bytes([0xDE]) + struct.pack("!H", len(names))
    bodies = [costly, start + costly, start + names[0] + costly, header(0xDF, SIZE) + costly]
    for body in bodies:
        yield struct.pack("!4sHI", form.magic, form.version, zlib.crc32(body)) + body


@pytest.mark.parametrize("costly", COSTLY)
@pytest.mark.parametrize(("kind", "form"), [(Snapshot, CONNECTION), (Http3State, HTTP3)])
def test_what_does_not_belong_there_is_not_built(kind: Any, form: Form, costly: bytes) -> None:
    for data in in_each_place(kind, form, costly):
        check_cost(lambda read: decode(read, kind, form), data)


@dataclass(frozen=True)
class Inner:
    number: Annotated[int, Within(0, 9)]
    numbers: Annotated[tuple[int, ...], Within(0, 1 << 20)]
    name: Annotated[str, Within(0, 3)] | None


@dataclass(frozen=True)
class Outer:
    inners: Annotated[tuple[Inner, ...], Within(1, 1 << 20)]
    data: Annotated[bytes, Within(0, 5)]


GOOD = Outer((Inner(1, (1, 2), None), Inner(2, (), "abc")), b"data")


def test_records_in_lists_and_lists_in_records() -> None:
    assert unpack(pack(GOOD), Outer) == GOOD


@pytest.mark.parametrize("costly", COSTLY)
def test_what_does_not_belong_anywhere_inside_is_not_built(costly: bytes) -> None:
    good = msgpack.packb([[[1, [1, 2], None]], b"data"])
    for end in range(len(good)):
        check_cost(lambda read: unpack(read, Outer), good[:end] + costly)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([[], b""], "inners is out of bounds"),
        ([[[1, [], None]], b"123456"], "data is out of bounds"),
        ([[[1, [], "abcd"]], b""], "inners name is out of bounds"),
        ([[[10, [], None]], b""], "inners number is out of bounds"),
        ([[[1, [b""], None]], b""], "inners numbers is of the wrong type"),
        ([[[1, 7, None]], b""], "inners numbers is not a list"),
        ([[[1, []]], b""], "inners is not a record of 3 fields"),
        ([[[1, [], None]]], "is not a record of 2 fields"),
    ],
)
def test_what_is_wrong_is_said(content: Any, why: str) -> None:
    with pytest.raises(SnapshotError, match=why):
        unpack(msgpack.packb(content), Outer)
    with pytest.raises(SnapshotError):
        unpack(pack(GOOD) + b"\x00", Outer)


def test_lists_in_lists_have_a_bound_together() -> None:
    """Each is short enough by itself."""
    each = (1 << 20) - 4
    count = MOST_VALUES // each + 1
    content = [[1, [0] * each, None]] * count
    with pytest.raises(SnapshotError, match="inners numbers has too many values"):
        unpack(msgpack.packb([content, b""]), Outer)
    unpack(msgpack.packb([content[:-1], b""]), Outer)


def test_a_record_in_a_list_counts_for_what_it_is_made_of() -> None:
    """A list of records that announces too many is refused before the first one is read."""
    within = header(0xDD, MOST_VALUES // 3 + 1)
    with pytest.raises(SnapshotError, match="inners has too many values"):
        unpack(b"\x92" + within, Outer)


def test_nothing_is_larger_than_its_type_says() -> None:
    longest = Outer((Inner(9, (1 << 63,) * 100, "\U0001f600" * 3),) * 100, bytes(5))
    assert len(pack(longest)) < largest(Outer)
    assert largest(Inner) == 5 + 9 + (5 + (1 << 20) * 9) + (5 + 3 * 4)
