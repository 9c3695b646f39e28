"""Certificates and keys in PEM files (RFC 7468), read as Python's `ssl` module reads them.

That is more than aioquic reads: text between the blocks, line ends of every system, no line end at
the end, key and certificates in one file in any order, parameters of curves, and certificates that
OpenSSL has marked as trusted.
"""

from __future__ import annotations

import base64
import os
import pwd
import re
import ssl
from pathlib import Path
from typing import Any

from aioquic import tls

from quicferry.protocol import QuicferryError

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----[ \t\r]*\n(.*?)-----END \1-----", re.DOTALL)
_CERTIFICATES = frozenset({b"CERTIFICATE", b"X509 CERTIFICATE", b"TRUSTED CERTIFICATE"})
_KEY = b"PRIVATE KEY"


class CredentialError(QuicferryError, ValueError):
    """A certificate or a key cannot be used; the text says why, and what to do."""


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return what is in a file of certificates or keys.

    Raises:
        CredentialError: If it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except PermissionError as exc:
        name = os.fspath(path)
        raise CredentialError(
            f"{may_not_read(name)}; give it to that user: chown {current_user()} {name}"
        ) from exc
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or exc
        raise CredentialError(f"cannot read {os.fspath(path)!r}: {reason}") from exc


def certificates_in(data: bytes, where: str) -> list[Any]:
    """Return the certificates in PEM data, in order.

    Args:
        data: Anything with blocks in it; what is not a certificate is passed over.
        where: What the data is, for errors.

    Raises:
        CredentialError: If there is none, or one is damaged.
    """
    try:
        certificates = tls.load_pem_x509_certificates(_plain_certificates(data))
    except ValueError as exc:
        raise CredentialError(f"{where} holds a certificate that is damaged") from exc
    if not certificates:
        raise CredentialError(f"{where} holds no certificate in PEM")
    return certificates


def authorities_in(data: bytes, where: str) -> bytes:
    """Return the certificates in PEM data as aioquic reads them.

    Raises:
        CredentialError: If there is none, or one is damaged.
    """
    certificates_in(data, where)
    return _plain_certificates(data)


def private_key_in(data: bytes, where: str, password: bytes | None = None) -> Any:
    """Return the first private key in PEM data.

    Args:
        data: Anything with blocks in it; what is not a private key is passed over.
        where: What the data is, for errors.
        password: What it is encrypted with; of no importance if it is not.

    Raises:
        CredentialError: If there is none, or it is encrypted with something else, or damaged.
    """
    for found in _BLOCK.finditer(data):
        if found[1].endswith(_KEY):
            break
    else:
        raise CredentialError(f"{where} holds no private key in PEM")
    block = found[0].replace(b"\r\n", b"\n") + b"\n"
    is_encrypted = b"ENCRYPTED" in found[1] or b"Proc-Type: 4,ENCRYPTED" in block
    if is_encrypted and password is None:
        raise CredentialError(
            f"the private key in {where} is encrypted, and nobody is there to give the password; "
            "decrypt it: openssl pkey -in KEY -out NEW_KEY, and let its owner alone read that"
        )
    try:
        return tls.load_pem_private_key(block, password=password if is_encrypted else None)
    except Exception as exc:  # ValueError, TypeError, and UnsupportedAlgorithm, which is neither
        problem = "has another password, or is damaged" if is_encrypted else "is damaged or unknown"
        raise CredentialError(f"the private key in {where} {problem}") from exc


def fit(certificates: list[Any], key: Any, certificate_file: str, key_file: str) -> None:
    """Assert that a key belongs to the first of some certificates.

    Raises:
        CredentialError: If it does not.
    """
    places = [number for number, each in enumerate(certificates) if belong_together(each, key)]
    if places and places[0] > 0:
        raise CredentialError(
            f"{key_file} belongs to the certificate in place {places[0] + 1} of "
            f"{certificate_file}; put that first, and those of its authorities after it"
        )
    if not places:
        raise CredentialError(
            f"{key_file} is not the key of the certificate in {certificate_file}; give the two "
            "that belong together"
        )


def belong_together(certificate: Any, key: Any) -> bool:
    """Return whether a private key is that of a certificate."""
    try:
        return bool(certificate.public_key() == key.public_key())
    except Exception:  # ValueError, and UnsupportedAlgorithm, which is none
        return False


def assert_authorities(cafile: str | None, capath: str | None) -> None:
    """Assert that OpenSSL will find certificates where aioquic tells it to look for them.

    Raises:
        CredentialError: If it will not.
    """
    if cafile is not None:
        certificates_in(read_file(cafile), os.fspath(cafile))
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile, capath)
    except (OSError, ValueError) as exc:
        raise CredentialError(f"no certificates can be read from {cafile or capath}") from exc


def _plain_certificates(data: bytes) -> bytes:
    """Return the certificates and nothing else, with the line ends of Unix."""
    return b"".join(
        ssl.DER_cert_to_PEM_cert(_without_trust(base64.b64decode(body))).encode()
        for label, body in _BLOCK.findall(data)
        if label in _CERTIFICATES
    )


def _without_trust(der: bytes) -> bytes:
    """Return a certificate without what OpenSSL has appended to it about trust (X.690 8.1.3)."""
    if len(der) < 2:
        return der
    octets = der[1] & 0x7F if der[1] & 0x80 else 0
    size = int.from_bytes(der[2 : 2 + octets], "big") if octets else der[1]
    return der[: 2 + octets + size]


def may_not_read(path: str) -> str:
    """Return the sentence for a file that exists, but for others."""
    return f"user {current_user()} (process {os.getpid()}) may not read {path}"


def current_user() -> str:
    """Return the name, or else the number, of the user as whom this process runs."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:  # a user of a container, for example
        return str(os.geteuid())
