"""Configurations of simulated connections."""

from __future__ import annotations

import ssl

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.logger import QuicLogger

from quicferry.protocol.options import ClientMigration, ServerMigration
from quicferry.transport import Configuration

from .certificate import SERVER_NAME, certificate

ALPN = ["quicferry-lab"]


def server_configuration(
    migration: ServerMigration | None, logger: QuicLogger | None = None
) -> Configuration:
    """The configuration of a simulated server."""
    certificate_, key = certificate()
    return Configuration(
        is_client=False,
        alpn_protocols=ALPN,
        certificate=certificate_,
        private_key=key,
        quic_logger=logger,
        server_migration=migration,
    )


def client_configuration(
    migration: ClientMigration | None, logger: QuicLogger | None = None
) -> Configuration:
    """The configuration of a simulated client."""
    return Configuration(
        alpn_protocols=ALPN,
        server_name=SERVER_NAME,
        verify_mode=ssl.CERT_NONE,
        quic_logger=logger,
        server_migration=migration,
    )


def stock_configuration(*, is_client: bool) -> QuicConfiguration:
    """The configuration of a connection of aioquic's own class."""
    if is_client:
        return QuicConfiguration(
            alpn_protocols=ALPN, server_name=SERVER_NAME, verify_mode=ssl.CERT_NONE
        )
    certificate_, key = certificate()
    return QuicConfiguration(
        is_client=False, alpn_protocols=ALPN, certificate=certificate_, private_key=key
    )
