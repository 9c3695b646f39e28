"""Datagrams between connections and the network, on the sockets of asyncio."""

from .endpoint import DEFAULT_LINGER, UdpEndpoint
from .errors import BindError, ConnectFailed, ConnectionLost
from .half_open import DEFAULT_MAX_HALF_OPEN, HandshakeCounts
from .link import ClientLink, DatagramLink, WrapTransport
from .protocol import ConnectionProtocol, EventStream, Forward, forward_nowhere
from .routing import Berth, ConnectionRouter, Handshakes
from .stateless import AddressValidation, StatelessReset
from .traces import QlogDirectory, TraceError
from .udp import UdpSocket

__all__ = [
    "DEFAULT_LINGER",
    "DEFAULT_MAX_HALF_OPEN",
    "AddressValidation",
    "Berth",
    "BindError",
    "ClientLink",
    "ConnectFailed",
    "ConnectionLost",
    "ConnectionProtocol",
    "ConnectionRouter",
    "DatagramLink",
    "EventStream",
    "Forward",
    "HandshakeCounts",
    "Handshakes",
    "QlogDirectory",
    "StatelessReset",
    "TraceError",
    "UdpEndpoint",
    "UdpSocket",
    "WrapTransport",
    "forward_nowhere",
]
