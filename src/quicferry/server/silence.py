"""Which clients have gone quiet, so that a move of the server does not wait for them.

A client that lives acknowledges what it is sent within a round trip. One whose acknowledgements are
lost is asked again, each time after twice the time of the time before (RFC 9002 6.2.1). So silence
is judged by the connection's own probe timeout, and by the time that there is for the move:

- after `PATIENCE` probe timeouts, which is an announcement and four repetitions, but not before
  `LEAST` seconds;
- at the deadline, if that is earlier, so that nobody can hold a move up by a round trip that is
  long on purpose;
- never, if the deadline leaves no time for two repetitions. Then it is for whoever has set it to
  decide.
"""

from __future__ import annotations

from dataclasses import dataclass

from quicferry.transport import Connection

PATIENCE = 31
"""Probe timeouts: 1 + 2 + 4 + 8 + 16."""

FAIR = 7
"""Probe timeouts: 1 + 2 + 4."""

LEAST = 1.0
"""Seconds, in which a client may be busy with something else."""

LONGEST_TIMEOUT = 0.5
"""Seconds of a probe timeout that count for what is fair."""


def patience(probe_timeout: float, deadline: float) -> float | None:
    """Return how long a client may be silent.

    Args:
        probe_timeout: Of its connection, in seconds.
        deadline: Seconds within which the server is to be ready.

    Returns:
        Seconds, `deadline` at most; None if it may be for as long as the server waits.
    """
    if deadline < FAIR * min(probe_timeout, LONGEST_TIMEOUT):
        return None
    return min(max(LEAST, PATIENCE * probe_timeout), deadline)


@dataclass(frozen=True)
class _Watched:
    connection: Connection
    since: int
    due: float


class Silence:
    """Connections whose clients have something to acknowledge; one for each move."""

    def __init__(self) -> None:
        self._watched: dict[str, _Watched] = {}

    @property
    def due(self) -> float | None:
        """When `look` has to be called, or None."""
        return min((each.due for each in self._watched.values()), default=None)

    def watch(
        self, name: str, connection: Connection, since: int, *, now: float, deadline: float
    ) -> None:
        """Watch a connection, if there is time for that.

        Args:
            name: Its stable id.
            connection: The connection.
            since: The number of the first packet whose acknowledgement counts.
            now: The time at which that was sent, in seconds.
            deadline: Seconds from then within which the server is to be ready.
        """
        seconds = patience(connection.path_estimate.probe_timeout, deadline)
        if seconds is not None:
            self._watched[name] = _Watched(connection, since, now + seconds)

    def look(self, now: float) -> list[str]:
        """Return those that have been silent for too long; they are not watched any more."""
        over = {name: each for name, each in self._watched.items() if each.due <= now}
        for name in over:
            del self._watched[name]
        return [name for name, it in over.items() if not it.connection.has_acknowledged(it.since)]
