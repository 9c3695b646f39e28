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


def _name(error_code: int) -> str:
    try:
        return ErrorCode(error_code).name
    except ValueError:
        return f"error 0x{error_code:x}"
