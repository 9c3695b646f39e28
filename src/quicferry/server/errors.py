"""What can go wrong with a server: with its relocation, its application, its management."""

from __future__ import annotations

import enum

from quicferry.protocol import MigrationErrorCode, QuicferryError


class RelocationErrorCode(enum.Enum):
    """Why a step of a relocation was refused, beside the errors of single connections.

    The value says in a sentence what is wrong and what to do.
    """

    NOT_PREPARED = "no migration has been announced; give the command imminent first"
    NOT_READY = "not all connections are ready; switch without them, or try again later"
    ALREADY_SWITCHED = "the server has moved already; wait until all connections have completed"
    ABORTED = "the migration was aborted; every connection goes on where it is"
    UNKNOWN_CONNECTION = "no such connection; see status for those that there are"
    UNKNOWN_PROTOCOL = "no such migration protocol"
    BEING_HANDED_OVER = "the connections are being handed over to another server; wait for its end"
    REQUESTS_RUNNING = "requests are still running; give them more time, or reset them"
    CANNOT_FREEZE = "a connection cannot be frozen now; try again in a moment"
    CANNOT_THAW = "a connection cannot live at the destination"
    CANNOT_BIND = "the new address cannot be used on this host"


class RelocationError(QuicferryError):
    """A step of a relocation was refused, and has changed nothing unless the text says so.

    Attributes:
        code: Which error it is: one of the relocation, or one of the migration protocol.
    """

    def __init__(self, code: RelocationErrorCode | MigrationErrorCode, detail: str = "") -> None:
        super().__init__(f"{code.name}: {detail or code.value}")
        self.code = code


class ConfigurationError(QuicferryError, ValueError):
    """Arguments that do not make sense, or contradict each other."""


class ApplicationError(QuicferryError):
    """The application did not start or stop, or does not fit what is asked of it."""


class ClientDisconnected(QuicferryError, OSError):  # noqa: N818 (named for what has happened, not for a fault)
    """The client of a request has gone away; what the application sends reaches nobody.

    An application need not handle it. ASGI asks for an OSError.
    """


class ManagementError(QuicferryError):
    """A management command failed.

    Attributes:
        code: The name of the error, for example ``INVALID_ADDRESS``.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
