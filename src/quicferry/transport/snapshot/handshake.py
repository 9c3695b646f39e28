"""What a finished handshake leaves behind on a server, for a connection that has not made one.

aioquic's `_initialize` prepares a handshake: keys for Initial packets, transport parameters, room
for what TLS has to say. On a copy all that would be thrown away at once, and it would be a quarter
of what a thaw costs.
"""

from __future__ import annotations

from functools import partial

from aioquic import tls
from aioquic.quic.connection import QuicConnectionState
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream

from ..connection import Connection

_FLIGHTS = (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE, tls.Epoch.ONE_RTT)
_ONE_RTT = tls.Epoch.ONE_RTT


def begin_after_handshake(connection: Connection, version: int, alpn: str | None) -> None:
    """Put a new connection where `_initialize` and a handshake would have put it.

    Keys for 1-RTT packets are all that is missing then.

    Args:
        connection: The connection.
        version: The version of QUIC.
        alpn: The application protocol.
    """
    connection._version = version
    connection.tls = tls.Context(is_client=False, logger=connection._logger)
    connection.tls.alpn_negotiated = alpn
    connection.tls.state = tls.State.SERVER_POST_HANDSHAKE
    connection._cryptos = {epoch: CryptoPair() for epoch in tls.Epoch}
    connection._cryptos_initial = {version: connection._cryptos[tls.Epoch.INITIAL]}
    log = connection._log_key_updated
    connection._cryptos[_ONE_RTT] = CryptoPair(
        recv_setup_cb=partial(log, "client_1rtt_secret"),
        send_setup_cb=partial(log, "server_1rtt_secret"),
    )
    connection._crypto_streams = {epoch: QuicStream() for epoch in _FLIGHTS}
    connection._spaces = {
        epoch: QuicPacketSpace(is_application_data=epoch is _ONE_RTT) for epoch in _FLIGHTS
    }
    for epoch in (tls.Epoch.INITIAL, tls.Epoch.HANDSHAKE):
        connection._spaces[epoch].discarded = True
    connection._loss.spaces = list(connection._spaces.values())
    connection._number_received_packets()
    connection._handshake_complete = connection._handshake_confirmed = True
    connection._state = QuicConnectionState.CONNECTED
