"""What the kernel tells of a container's processes (proc(5))."""

from __future__ import annotations

from pathlib import Path

_PROC = Path("/proc")


def is_alive(pid: int) -> bool:
    """Whether a process is there, and not only waits for its parent to hear of its end."""
    try:
        status = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def memory_of(pid: int) -> int:
    """Return the resident memory of a process and of all that it has started, in bytes."""
    children: dict[int, list[int]] = {}
    resident: dict[int, int] = {}
    for status in _PROC.glob("[0-9]*/status"):
        try:
            fields = dict(
                line.split(":", 1) for line in status.read_text().splitlines() if ":" in line
            )
        except OSError:
            continue  # it has ended meanwhile
        number = int(status.parent.name)
        children.setdefault(int(fields["PPid"]), []).append(number)
        resident[number] = int(fields.get("VmRSS", "0 kB").split()[0]) << 10
    total, waiting = 0, [pid]
    while waiting:
        number = waiting.pop()
        total += resident.get(number, 0)
        waiting += children.get(number, [])
    return total
