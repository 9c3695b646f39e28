"""Which memory of this process is carried at once, where the rest is fetched later.

With post-copy a container is restored without its memory, and each page that it touches has to
come over the network first. An interpreter touches hundreds of them, all over its heap, before it
has answered the first request. So a server locks its working memory before it is dumped: CRIU
fetches no locked page later, it writes it at once. What is large beside it (caches, tables) is left
to be fetched. Where the process may not lock memory (CAP_IPC_LOCK, mlock(2)), all is fetched.

Large is a mapping of more than `LARGEST`. The kernel joins neighbouring mappings, and would hide
what the interpreter needs in one with a large table, so `set_apart` marks what there is at the
start in a way that keeps it apart: it is not part of core dumps any more (madvise(2)). The keys of
connections are in there, too.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

LARGEST = 32 << 20
"""Bytes of a mapping that may still be working memory."""

_MADV_DONTDUMP = 16
_MLOCK_ONFAULT = 1
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ 00:00 0 *(\S*)$")
_OWN = ("", "[heap]", "[stack]")

_libc = ctypes.CDLL(None, use_errno=True)


def set_apart() -> None:
    """Keep the memory that there is apart from what will be."""
    for start, size in _mappings():
        _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(size), _MADV_DONTDUMP)


def lock() -> bool:
    """Lock the working memory, and return whether that is permitted."""
    return all(
        _libc.mlock2(ctypes.c_void_p(start), ctypes.c_size_t(size), _MLOCK_ONFAULT) == 0
        for start, size in _mappings()
        if size <= LARGEST
    )


def unlock() -> None:
    """Lock nothing any longer."""
    _libc.munlockall()


def _mappings() -> Iterator[tuple[int, int]]:
    """Yield where private memory is mapped that can be written, and its size."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        found = _MAPPING.match(line)
        if found and found[3] in _OWN:
            start, end = int(found[1], 16), int(found[2], 16)
            yield start, end - start
