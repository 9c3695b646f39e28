"""Certificates for trying things out, and for hosts that know each other."""

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
from cryptography.x509.oid import ExtendedKeyUsageOID

VALIDITY = timedelta(days=90)

HOST_VALIDITY = timedelta(days=3650)
"""Ten years: a host's certificate counts for as long as another one has it on its list, and one
that expires is noticed when the host has to be left."""

_EARLIER = timedelta(minutes=5)
_HOST_EARLIER = timedelta(days=1)
_LONGEST_COMMON_NAME = 64  # X.520


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
    builder = _builder("quicferry self-signed", names, _EARLIER, VALIDITY)
    return _sign(
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    )


def host_certificate(host: str) -> tuple[bytes, bytes]:
    """Return a new certificate by which hosts that have it on a list recognise one of them.

    It is good for both ends of a TLS connection and not for signing others. It is valid for
    `HOST_VALIDITY`, from a day ago, because the clocks of hosts differ.

    Args:
        host: The name or IP address of the host.

    Returns:
        The certificate and its private key, both in PEM format.
    """
    builder = _builder(
        host[:_LONGEST_COMMON_NAME], [_general_name(host)], _HOST_EARLIER, HOST_VALIDITY
    )
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    return _sign(
        builder.add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True
        ).add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    )


def load_pem(configuration: QuicConfiguration, certificate: bytes, key: bytes) -> None:
    """Put a certificate chain and its private key, both in PEM format, into a configuration."""
    configuration.certificate, *configuration.certificate_chain = load_pem_x509_certificates(
        certificate
    )
    configuration.private_key = load_pem_private_key(key, password=None)


def _builder(
    subject: str, names: list[x509.GeneralName], earlier: timedelta, validity: timedelta
) -> x509.CertificateBuilder:
    """Return a certificate that wants its last extensions, and to be signed."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - earlier)
        .not_valid_after(now + validity)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
    )


def _sign(builder: x509.CertificateBuilder) -> tuple[bytes, bytes]:
    """Return the certificate, signed with a new key, and that key; both in PEM format."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = builder.public_key(key.public_key()).sign(key, hashes.SHA256())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return certificate.public_bytes(Encoding.PEM), private


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
