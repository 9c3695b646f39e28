"""A QUIC connection whose server may move, on aioquic.

This is the only package that touches aioquic's private parts. When it is imported it checks that
they are what it needs.
"""

from .addresses import NetworkAddress, address_from_network, network_address
from .configuration import Configuration
from .connection import Connection
from .http3.connection import Http3Connection
from .http3.messages import MessageMalformed, sendable_fields
from .opening import Opening, read_opening
from .paths.recovery import PathEstimate
from .pem import (
    CredentialError,
    belong_together,
    certificates_in,
    current_user,
    may_not_read,
    private_key_in,
    read_file,
)
from .seal import RESERVED_NUMBERS
from .snapshot.connection import freeze, last_words, prepare_snapshots, thaw
from .snapshot.events import unread_events
from .snapshot.format import FORMAT_VERSION, MAX_SNAPSHOT_SIZE, SnapshotError
from .snapshot.standstill import activate, become_copy, commit, fall_silent, resume_after_freeze

__all__ = [
    "FORMAT_VERSION",
    "MAX_SNAPSHOT_SIZE",
    "RESERVED_NUMBERS",
    "Configuration",
    "Connection",
    "CredentialError",
    "Http3Connection",
    "MessageMalformed",
    "NetworkAddress",
    "Opening",
    "PathEstimate",
    "SnapshotError",
    "activate",
    "address_from_network",
    "become_copy",
    "belong_together",
    "certificates_in",
    "commit",
    "current_user",
    "fall_silent",
    "freeze",
    "last_words",
    "may_not_read",
    "network_address",
    "prepare_snapshots",
    "private_key_in",
    "read_file",
    "read_opening",
    "resume_after_freeze",
    "sendable_fields",
    "thaw",
    "unread_events",
]
