"""What CRIU's images say that the processes of a container may do.

CRIU restores as root, and gives a process what its image says: any user, any capability. So before
an image that has come from another host is restored, `check_rights` holds each process and thread
against what the container's own configuration gives. The images are Protocol Buffers behind a
header (criu.org/Images; images/core.proto and images/creds.proto in CRIU's sources); only the
fields that matter are read.

This narrows what a source can do here, and no more: whoever writes images decides what processes
do, and CRIU opens for them, as root, what the images name.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quicferry.relocation.errors import EngineError

_HEADER = struct.Struct("<III")
_COMMON, _CORE = 0x54564319, 0x55053847
LARGEST_IMAGE = 1 << 16
"""Bytes of the image of one thread; CRIU writes some thousand."""
_CAPABILITY_WORDS = 2
"""Linux has so many words of 32 bits for a set of capabilities."""

_TASK, _THREAD = 3, 5
"""Fields of ``core_entry``."""
_STATE, _CREDENTIALS, _SECCOMP = 1, 10, 11
"""Of ``task_core_entry``, and of ``thread_core_entry``."""
_DEAD = 6
_FILTERED = 2
_USERS, _GROUPS, _CAPABILITIES, _FURTHER_GROUPS = (
    (1, 3, 5, 7),
    (2, 4, 6, 8),
    (9, 10, 11, 12, 19),
    14,
)
"""Of ``creds_entry``."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED = {_FIXED64: 8, _FIXED32: 4}

_NAMES = (
    *("CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID"),
    *("KILL", "SETGID", "SETUID", "SETPCAP", "LINUX_IMMUTABLE"),
    *("NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK"),
    *("IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE"),
    *("SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE"),
    *("SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE"),
    *("AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG"),
    *("WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF"),
    *("CHECKPOINT_RESTORE",),
)
"""Of capabilities, by their numbers (linux/capability.h)."""


@dataclass(frozen=True)
class Rights:
    """What a container's processes may do.

    Attributes:
        user: Whose they are.
        groups: The groups that they may belong to; the first one is their own.
        capabilities: What they may have of root, by the names of the OCI specification.
        is_filtered: Whether their system calls are filtered (seccomp).
    """

    user: int
    groups: tuple[int, ...]
    capabilities: frozenset[str]
    is_filtered: bool

    def may_be(self, capability: str) -> bool:
        """Whether they may become another user, or another group, by themselves."""
        return self.user == 0 or capability in self.capabilities


def check_rights(directory: Path, rights: Rights) -> None:
    """Check that the processes in images get no more than their container's rights.

    Args:
        directory: The images.
        rights: What they may do.

    Raises:
        EngineError: If one gets more, or the images cannot be understood.
    """
    check_images(_images_in(directory), rights)


def check_images(images: Iterable[tuple[str, bytes]], rights: Rights) -> None:
    """Check the same of images by their names and contents.

    Raises:
        EngineError: As `check_rights`.
    """
    known = {f"CAP_{name}": 1 << number for number, name in enumerate(_NAMES)}
    allowed = sum(known.get(name, 0) for name in rights.capabilities)
    are_there = False
    for name, data in images:
        are_there = True
        try:
            wrong = _excess(_content(data), rights, allowed)
        except (ValueError, LookupError, struct.error):
            raise _not_understood(name) from None
        if wrong is not None:
            raise EngineError(
                f"a process of the container {wrong} by its image ({name}), and that is more "
                "than the configuration of the container here gives; whoever has sent it may try "
                "to get into this host: look at the source"
            )
    if not are_there:
        raise _not_understood("there are none of processes")


def _images_in(directory: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(directory.glob("core-*.img")):
        with path.open("rb") as file:
            yield path.name, file.read(LARGEST_IMAGE + 1)


def _excess(core: bytes, rights: Rights, allowed: int) -> str | None:
    """Return what the process gets beyond its rights."""
    fields = _fields(core)
    task, thread = _fields(_one(fields, _TASK)), _fields(_one(fields, _THREAD))
    if task.get(_STATE, [0])[-1:] == [_DEAD] and not thread:
        return None
    credentials = _fields(_one(thread, _CREDENTIALS))
    users = {_number(credentials, field) for field in _USERS}
    groups = {_number(credentials, field) for field in _GROUPS}
    further = set(_numbers(credentials.get(_FURTHER_GROUPS, [])))
    if users != {rights.user} and not rights.may_be("CAP_SETUID"):
        return f"would be of user {', '.join(map(str, sorted(users)))}"
    is_foreign = groups != {rights.groups[0]} or not further <= set(rights.groups)
    if is_foreign and not rights.may_be("CAP_SETGID"):
        return f"would be of group {', '.join(map(str, sorted(groups | further)))}"
    for field in _CAPABILITIES:
        words = _numbers(credentials.get(field, []))
        if len(words) > _CAPABILITY_WORDS:
            raise ValueError
        mask = sum(word << 32 * place for place, word in enumerate(words))
        if more := mask & ~allowed:
            return f"would have the capability {_name_of(more)}"
    # A further thread has none of its own in its image if it has that of its process.
    without = [0] if task else [_FILTERED]
    if rights.is_filtered and thread.get(_SECCOMP, without)[-1:] != [_FILTERED]:
        return "would have no filter of system calls"
    return None


def _content(image: bytes) -> bytes:
    """Return what the image of a process or a thread holds."""
    common, kind, size = _HEADER.unpack_from(image)
    is_whole = len(image) == _HEADER.size + size <= LARGEST_IMAGE
    if (common, kind) != (_COMMON, _CORE) or not is_whole:
        raise ValueError
    return image[_HEADER.size :]


def _fields(data: bytes) -> dict[int, list[int | bytes]]:
    """Return the fields of a message, by their numbers, in order."""
    fields: dict[int, list[int | bytes]] = {}
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        value: int | bytes
        if kind == _VARINT:
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if kind == _BYTES else (_FIXED[kind], at)
            value = data[at : at + size]
            if len(value) < size:
                raise ValueError
            at += size
        fields.setdefault(key >> 3, []).append(value)
    return fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a number, and where the next one is."""
    value = shift = 0
    while data[at] & 0x80:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if shift > 63:
            raise ValueError
    return value | data[at] << shift, at + 1


def _one(fields: dict[int, list[int | bytes]], number: int) -> bytes:
    """Return the content of a message in a field, empty if it is not there.

    One that comes again would be merged with the first by CRIU, which never writes it so.
    """
    values = fields.get(number, [b""])
    if len(values) != 1 or not isinstance(values[0], bytes):
        raise ValueError
    return values[0]


def _number(fields: dict[int, list[int | bytes]], number: int) -> int:
    (value,) = fields.get(number, (b"",))
    if not isinstance(value, int):
        raise ValueError
    return value


def _numbers(values: Sequence[int | bytes]) -> list[int]:
    """Return repeated numbers, which may stand together in one field (packed)."""
    return [number for value in values for number in _unpacked(value)]


def _unpacked(value: int | bytes) -> Iterator[int]:
    if isinstance(value, int):
        yield value
        return
    at = 0
    while at < len(value):
        number, at = _varint(value, at)
        yield number


def _name_of(mask: int) -> str:
    number = mask.bit_length() - 1
    return f"CAP_{_NAMES[number]}" if number < len(_NAMES) else str(number)


def _not_understood(what: str) -> EngineError:
    return EngineError(
        f"the images of the container cannot be understood ({what}); use the same version of CRIU "
        "on both hosts, 4.2 for example"
    )
