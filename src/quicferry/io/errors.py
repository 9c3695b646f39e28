"""What can go wrong between an endpoint and the network."""

from __future__ import annotations

import errno

from quicferry.protocol import Address, QuicferryError, printable

_REMEDIES = {
    errno.EADDRNOTAVAIL: "add the address to an interface of this host, or choose another",
    errno.EADDRINUSE: "choose another port, or stop the program that uses this one",
    errno.EACCES: "choose a port above 1023, or give this program the right to bind it",
    errno.EAFNOSUPPORT: "enable this address family on this host, or choose the other one",
}


class BindError(QuicferryError):
    """A local address could not be bound.

    Attributes:
        address: The address that was asked for.
        errno: The error number of the operating system; None where the address itself is wrong.
    """

    def __init__(self, address: Address, cause: OSError) -> None:
        remedy = _REMEDIES.get(cause.errno or 0, "choose another address")
        super().__init__(f"cannot bind {address}: {cause.strerror or cause}; {remedy}")
        self.address = address
        self.errno = cause.errno


class ConnectionLost(QuicferryError, ConnectionError):  # noqa: N818 (named for what has happened, not for a fault)
    """The connection has ended, whoever ended it.

    Attributes:
        error_code: The QUIC or application error code that it was closed with.
        reason: The reason phrase, for example ``server migrated``; possibly empty. What is not
            printable in it is escaped: the peer has chosen it.
    """

    def __init__(self, error_code: int, reason: str) -> None:
        reason = printable(reason)
        super().__init__(f"the connection has ended: {reason or f'error 0x{error_code:x}'}")
        self.error_code = error_code
        self.reason = reason


class ConnectFailed(ConnectionLost):
    """The handshake did not succeed; the text names the server and the reason."""

    def __init__(self, remote: str, error_code: int, reason: str) -> None:
        super().__init__(error_code, reason)
        said = self.reason or f"error 0x{error_code:x}"
        self.args = (f"cannot connect to {remote}: {said}",)
