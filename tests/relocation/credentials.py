"""Certificates that `quicferry agent init` does not make."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from quicferry.relocation.link.identity import ALPN, CA, CERTIFICATE, KEY, PEERS, Identity

LOCAL = "127.0.0.1"


@dataclass(frozen=True)
class Credentials:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def write(self, folder: Path) -> Path:
        folder.mkdir(exist_ok=True)
        (folder / CERTIFICATE).write_bytes(self.pem)
        (folder / KEY).touch(mode=0o600)
        (folder / KEY).write_bytes(self.key_pem)
        return folder

    def with_peers(self, folder: Path, *peers: Credentials) -> Identity:
        self.write(folder)
        (folder / PEERS).write_bytes(b"".join(peer.pem for peer in peers))
        return Identity.load(folder)

    def with_ca(self, folder: Path, ca: Credentials) -> Identity:
        self.write(folder)
        (folder / CA).write_bytes(ca.pem)
        return Identity.load(folder)


def issue(
    host: str = LOCAL,
    *,
    name: str | None = None,
    signer: Credentials | None = None,
    may_sign: bool = False,
    days: tuple[float, float] = (-1, 1),
) -> Credentials:
    """Return new credentials, self-signed without a signer; `days` from now they are valid.

    The host may have another common name than one made of its name.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    common_name = name or f"host {host}"
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common_name)])
    now = datetime.now(UTC)
    try:
        known_as: x509.GeneralName = x509.IPAddress(ip_address(host))
    except ValueError:
        known_as = x509.DNSName(host)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer.certificate.subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(days=days[0]))
        .not_valid_after(now + timedelta(days=days[1]))
        .add_extension(x509.SubjectAlternativeName([known_as]), critical=False)
        .add_extension(x509.BasicConstraints(ca=may_sign, path_length=None), critical=True)
        .sign(signer.key if signer else key, hashes.SHA256())
    )
    return Credentials(certificate, key)


def plain_client(
    folder: Path | None, *, alpn: str = ALPN, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
) -> ssl.SSLContext:
    """Return a client that accepts every server, and shows the certificate in `folder`, if any."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = version
    context.set_alpn_protocols([alpn])
    if folder is not None:
        context.load_cert_chain(folder / CERTIFICATE, folder / KEY)
    return context
