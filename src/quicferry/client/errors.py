"""What can go wrong with a request, beside the end of its connection."""

from __future__ import annotations

from aioquic.h3.connection import ErrorCode

from quicferry.protocol import QuicferryError


class RequestFailed(QuicferryError):  # noqa: N818 (named for what has happened, not for a fault)
    """A request got no complete response; the connection goes on.

    Attributes:
        error_code: The HTTP/3 error code that the server gave; None where it gave none.
    """

    def __init__(self, problem: str, error_code: int | None = None) -> None:
        name = "" if error_code is None else f" ({_name(error_code)})"
        super().__init__(f"{problem}{name}")
        self.error_code = error_code


class RequestRejected(RequestFailed):
    """The server has turned a request away, and it may be sent again, whatever its method is.

    The server says with this error code that the request had no effect that a second one would not
    have (RFC 9114 4.1.1). One that is handed over to another host does so.
    """

    problem = "the server rejected the request; it may be sent again"

    def __init__(self) -> None:
        super().__init__(self.problem, ErrorCode.H3_REQUEST_REJECTED)


class GoingAway(RequestRejected):
    """The server takes no more requests on this connection (RFC 9114 5.2).

    It has not looked at this one, which may be sent again on another connection.
    """

    problem = "the server takes no more requests on this connection; connect again"


def reset_by_server(error_code: int) -> RequestFailed:
    """Return the error that a reset response stands for."""
    if error_code == ErrorCode.H3_REQUEST_REJECTED:
        return RequestRejected()
    return RequestFailed("the server gave up the response", error_code)


def _name(error_code: int) -> str:
    try:
        return ErrorCode(error_code).name
    except ValueError:
        return f"error 0x{error_code:x}"
