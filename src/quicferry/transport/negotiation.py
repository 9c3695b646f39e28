"""What the two sides agree on in their handshake: `server_migration_suite`, and withdrawals."""

from __future__ import annotations

from typing import Any

from aioquic import tls
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionError
from aioquic.quic.packet import QuicFrameType

from quicferry.protocol import (
    SUITE_PARAMETER_ID,
    WITHDRAWAL_PARAMETER_ID,
    ClientMigration,
    ConnectionErrorCode,
    MigrationProtocol,
    PeerError,
    ServerMigration,
    accept_suite,
    accept_withdrawal,
    answer_suite,
    encode_suite,
)

from .parameters import find, with_suite, with_withdrawal


class Negotiation(QuicConnection):
    """A connection that offers its migration protocols, or answers an offer.

    Args:
        configuration: A `Configuration`, or aioquic's own with server migration off.
        arguments: As in aioquic.

    Raises:
        ValueError: If the configuration's `server_migration` is for the other side.

    Attributes:
        negotiated: The protocols that were agreed on; 0 where nothing is in common; None where
            server migration is off for this connection.
        knows_withdrawals: Whether the client says that its server can take back what it has
            announced. A client may say no before its handshake, to be one that cannot.
    """

    def __init__(self, *, configuration: QuicConfiguration, **arguments: Any) -> None:
        super().__init__(configuration=configuration, **arguments)
        options = getattr(configuration, "server_migration", None)
        expected = ClientMigration if self._is_client else ServerMigration
        if options is not None and not isinstance(options, expected):
            raise ValueError(f"server_migration must be a {expected.__name__} here, or None")
        self.negotiated: MigrationProtocol | None = None
        self.knows_withdrawals = self._is_client and options is not None
        self._options: ClientMigration | ServerMigration | None = options

    # Overridden from aioquic

    def _serialize_transport_parameters(self) -> bytes:
        parameters: bytes = super()._serialize_transport_parameters()
        if self._is_client and self._options is not None:
            parameters = with_suite(parameters, encode_suite(self._options.protocols))
            return with_withdrawal(parameters) if self.knows_withdrawals else parameters
        suite = self.negotiated
        return parameters if suite is None else with_suite(parameters, encode_suite(suite))

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket=from_session_ticket)
        if self._options is None or from_session_ticket:
            return
        try:
            suite = find(data, SUITE_PARAMETER_ID)
            withdrawal = find(data, WITHDRAWAL_PARAMETER_ID)
            if not self._is_client:
                self.knows_withdrawals = accept_withdrawal(withdrawal)
            elif withdrawal is not None:
                raise PeerError(
                    ConnectionErrorCode.TRANSPORT_PARAMETER_ERROR,
                    "a server must not send the parameter for withdrawals",
                )
            if suite is None:
                return
            if self._is_client:
                self.negotiated = accept_suite(suite, self._options.protocols)
            else:
                self.negotiated = answer_suite(suite, self._options.protocols)
                # aioquic has serialised the server's parameters before it knew the client's.
                self.tls.handshake_extensions = [
                    (kind, with_suite(value, encode_suite(self.negotiated)))
                    if kind == tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS
                    else (kind, value)
                    for kind, value in self.tls.handshake_extensions
                ]
        except PeerError as exc:
            raise close_with(exc, QuicFrameType.CRYPTO) from None


def close_with(error: PeerError, frame_type: int) -> QuicConnectionError:
    """Return the exception that makes aioquic close the connection because of the peer's error."""
    return QuicConnectionError(
        error_code=int(error.code), frame_type=frame_type, reason_phrase=error.reason
    )
