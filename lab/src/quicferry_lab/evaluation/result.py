"""What a run has found. All instants are seconds since the run's first request was sent."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from quicferry_lab.evaluation.run import Run


class At(enum.Enum):
    """Where the server was that answered."""

    SOURCE = "source"
    DESTINATION = "destination"


@dataclass(frozen=True)
class Request:
    """One request of a client.

    Attributes:
        client: Which client, from 1.
        number: Which of its requests, from 1.
        started: When it was sent.
        service_time: Seconds until its whole response was there and found right; None if that did
            not happen.
        method: GET or POST.
        upload: Bytes of its body.
        download: Bytes of the response's body.
        server: Where the last datagram of the response came from; None if there was none.
        error: Why it failed; empty if it did not.
    """

    client: int
    number: int
    started: float
    service_time: float | None
    method: str
    upload: int
    download: int
    server: At | None
    error: str = ""


@dataclass(frozen=True)
class Relocation:
    """One relocation of the server, or one preparation that was not followed by any.

    The parts of a relocation by checkpoint are named as in the thesis; what a backend does not have
    is None.

    Attributes:
        number: Which one of the run, from 1.
        imminent_at: When the server was told to get ready.
        ready_at: When it was ready: the difference is the notification time.
        silent_at: When it fell silent.
        restored_at: When it could speak again, at its new address.
        completed_at: When every client had followed.
        pre_dump: Seconds of a first dump, during which the server goes on.
        pre_dump_transfer: Seconds of its transfer.
        dump: Seconds of the dump.
        transfer: Seconds from its end until all of it was at the destination.
        restore: Seconds from then until the restored server answered.
        carried: Bytes that went from host to host.
    """

    number: int
    imminent_at: float | None = None
    ready_at: float | None = None
    silent_at: float | None = None
    restored_at: float | None = None
    completed_at: float | None = None
    pre_dump: float | None = None
    pre_dump_transfer: float | None = None
    dump: float | None = None
    transfer: float | None = None
    restore: float | None = None
    carried: int | None = None


@dataclass(frozen=True)
class Result:
    """Everything that a run has found.

    Attributes:
        run: The run.
        requests: Its requests, by client and number.
        relocations: Its relocations, in order.
        lost_clients: How many clients had lost their connection in the end.
        problems: What was not as it should be, in words; the run has failed if there is anything.
    """

    run: Run
    requests: tuple[Request, ...] = ()
    relocations: tuple[Relocation, ...] = ()
    lost_clients: int = 0
    problems: tuple[str, ...] = field(default=())

    @property
    def has_failed(self) -> bool:
        """Whether something was not as it should be."""
        return bool(self.problems)


def failure(run: Run, error: BaseException) -> Result:
    """Return the result of a run that did not come to its end."""
    return Result(run, problems=(f"{type(error).__name__}: {error}",))
