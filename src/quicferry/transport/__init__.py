"""A QUIC connection whose server may move, on aioquic.

This is the only package that touches aioquic's private parts. When it is imported it checks that
they are what it needs.
"""

from .addresses import NetworkAddress, address_from_network, network_address
from .configuration import Configuration
from .connection import Connection
from .http3 import Http3Connection
from .recovery import PathEstimate

__all__ = [
    "Configuration",
    "Connection",
    "Http3Connection",
    "NetworkAddress",
    "PathEstimate",
    "address_from_network",
    "network_address",
]
