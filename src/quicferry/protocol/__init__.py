"""The server-migration extension of QUIC, sans-IO: no sockets, no clock, no QUIC stack.

Source: D. Casu, "Extending mvfst to support enhanced server-side migration in QUIC", University of
Pisa, 2022; the code points and byte layouts are those of its implementation.
"""

from .address import Address, MigrationAddress, refusal
from .client import ClientMachine
from .errors import (
    ConnectionErrorCode,
    MigrationError,
    MigrationErrorCode,
    PeerError,
    QuicferryError,
)
from .events import (
    AnnouncementWithdrawn,
    ClientMigrationDetected,
    ConnectionClosed,
    HandshakeFinished,
    MigrationCompleted,
    MigrationEvent,
    MigrationFailed,
    MigrationReady,
    PoolAddressAcknowledged,
    PoolAddressReceived,
    ProbingStarted,
    ServerMigratedAcknowledged,
    ServerMigratedReceived,
    ServerMigrationAcknowledged,
    ServerMigrationReceived,
    WithdrawalAcknowledged,
)
from .frames import (
    FrameType,
    MigrationFrame,
    PoolMigrationAddressFrame,
    ServerMigratedFrame,
    ServerMigrationFrame,
    decode_frame,
    encode_body,
)
from .logs import escape_logs
from .options import ClientMigration, Policy, Scheduler, ServerMigration
from .server import ServerMachine
from .suite import (
    ALL_PROTOCOLS,
    SUITE_PARAMETER_ID,
    WITHDRAWAL_PARAMETER_ID,
    MigrationProtocol,
    accept_suite,
    accept_withdrawal,
    answer_suite,
    encode_suite,
    protocol_from_name,
    protocol_name,
)
from .text import printable

__all__ = [
    "ALL_PROTOCOLS",
    "SUITE_PARAMETER_ID",
    "WITHDRAWAL_PARAMETER_ID",
    "Address",
    "AnnouncementWithdrawn",
    "ClientMachine",
    "ClientMigration",
    "ClientMigrationDetected",
    "ConnectionClosed",
    "ConnectionErrorCode",
    "FrameType",
    "HandshakeFinished",
    "MigrationAddress",
    "MigrationCompleted",
    "MigrationError",
    "MigrationErrorCode",
    "MigrationEvent",
    "MigrationFailed",
    "MigrationFrame",
    "MigrationProtocol",
    "MigrationReady",
    "PeerError",
    "Policy",
    "PoolAddressAcknowledged",
    "PoolAddressReceived",
    "PoolMigrationAddressFrame",
    "ProbingStarted",
    "QuicferryError",
    "Scheduler",
    "ServerMachine",
    "ServerMigratedAcknowledged",
    "ServerMigratedFrame",
    "ServerMigratedReceived",
    "ServerMigration",
    "ServerMigrationAcknowledged",
    "ServerMigrationFrame",
    "ServerMigrationReceived",
    "WithdrawalAcknowledged",
    "accept_suite",
    "accept_withdrawal",
    "answer_suite",
    "decode_frame",
    "encode_body",
    "encode_suite",
    "printable",
    "protocol_from_name",
    "protocol_name",
    "refusal",
]

escape_logs()
