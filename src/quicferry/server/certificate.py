"""Certificates for trying things out."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from aioquic.quic.configuration import QuicConfiguration
from aioquic.tls import load_pem_private_key, load_pem_x509_certificates
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

VALIDITY = timedelta(days=90)


def self_signed(hosts: Iterable[str]) -> tuple[bytes, bytes]:
    """Return a new certificate that its owner has signed itself, and its private key.

    No client trusts it, unless it is given to the client as a certification authority.

    Args:
        hosts: The names and IP addresses of the server; a server that moves needs no other
            certificate, since clients go on checking what they have connected to.

    Returns:
        Both in PEM format. Nothing is written to a file.
    """
    names = [_general_name(host) for host in hosts]
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "quicferry self-signed")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + VALIDITY)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), private


def load_pem(configuration: QuicConfiguration, certificate: bytes, key: bytes) -> None:
    """Put a certificate chain and its private key, both in PEM format, into a configuration."""
    configuration.certificate, *configuration.certificate_chain = load_pem_x509_certificates(
        certificate
    )
    configuration.private_key = load_pem_private_key(key, password=None)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
