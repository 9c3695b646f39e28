"""aioquic's configuration with one more field, and with files as Python's `ssl` reads them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from aioquic.quic.configuration import QuicConfiguration

from quicferry.protocol import ClientMigration, ServerMigration

from .http3.messages import MAX_FIELD_SECTION, MAX_FIELDS
from .pem import assert_authorities, authorities_in, certificates_in, fit, private_key_in, read_file


@dataclass
class Configuration(QuicConfiguration):
    """A QUIC configuration; every field of aioquic's means the same here.

    Attributes:
        server_migration: The choices of this side about server migration. None switches it off,
            and the connection is plain RFC 9000 QUIC.
        max_header_size: Bytes of a header or trailer of HTTP/3 that is taken in, where 32 are
            added for each field (RFC 9114 4.2.2).
        max_header_fields: How many fields it may have.
        max_streams: How many bidirectional streams the peer may have open at once; with HTTP/3,
            requests of a client.

    Raises:
        CredentialError: If there is no certificate in `cadata`.
    """

    server_migration: ClientMigration | ServerMigration | None = None
    max_header_size: int = MAX_FIELD_SECTION
    max_header_fields: int = MAX_FIELDS
    max_streams: int = 128

    def __post_init__(self) -> None:
        if self.cadata is not None:
            self.cadata = authorities_in(self.cadata, "cadata")

    def load_cert_chain(
        self,
        certfile: str | os.PathLike[Any],
        keyfile: str | os.PathLike[Any] | None = None,
        password: bytes | str | None = None,
    ) -> None:
        """Load a certificate, those of the authorities between, and the private key, from PEM.

        Args:
            certfile: The file with the certificate first.
            keyfile: The file with the key; by default it is in `certfile`, too.
            password: What the key is encrypted with.

        Raises:
            CredentialError: If they cannot be read or do not belong together. Nothing has changed.
        """
        data, name = read_file(certfile), os.fspath(certfile)
        certificates = certificates_in(data, name)
        if keyfile is not None:
            data, keyname = read_file(keyfile), os.fspath(keyfile)
        else:
            keyname = name
        if isinstance(password, str):
            password = password.encode()
        key = private_key_in(data, keyname, password)
        fit(certificates, key, name, keyname)
        self.certificate, *self.certificate_chain = certificates
        self.private_key = key

    def load_verify_locations(
        self,
        cafile: str | None = None,
        capath: str | None = None,
        cadata: bytes | None = None,
    ) -> None:
        """Trust certification authorities, and no others.

        Args:
            cafile: A PEM file with certificates.
            capath: A directory with such files, named as OpenSSL wants.
            cadata: Certificates in PEM.

        Raises:
            CredentialError: If they cannot be read. Nothing has changed.
        """
        if cafile is not None or capath is not None:
            assert_authorities(cafile, capath)
        if cadata is not None:
            cadata = authorities_in(cadata, "cadata")
        super().load_verify_locations(cafile, capath, cadata)
