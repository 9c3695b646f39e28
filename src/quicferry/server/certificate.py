"""Certificates for trying things out, and for hosts that know each other."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

from aioquic.quic.configuration import QuicConfiguration
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from quicferry.transport import belong_together, certificates_in, private_key_in

from .errors import ConfigurationError

logger = logging.getLogger("quicferry.server")

VALIDITY = timedelta(days=90)

HOST_VALIDITY = timedelta(days=3650)
"""Ten years: a host's certificate counts for as long as another one has it on its list, and one
that expires is noticed when the host has to be left."""

_EARLIER = timedelta(minutes=5)
_HOST_EARLIER = timedelta(days=1)
_LONGEST_COMMON_NAME = 64  # X.520

_SMALLEST_RSA_KEY = 1024
_COMMON_RSA_KEY = 2048
_FOR_SERVERS = frozenset(
    {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}
)


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
    """Put a certificate chain and its private key, both in PEM format, into a configuration.

    Raises:
        CredentialError: If they cannot be read.
    """
    certificates = certificates_in(certificate, "the certificate chain")
    configuration.private_key = private_key_in(key, "the key")
    configuration.certificate, *configuration.certificate_chain = certificates


def check_certificate(configuration: QuicConfiguration) -> None:
    """Assert that clients can use the certificate of a server; warn of what many object to.

    Raises:
        ConfigurationError: If no client at all could connect; the text says what to do.
    """
    certificate, key = configuration.certificate, configuration.private_key
    if configuration.is_client or certificate is None:
        raise ConfigurationError(
            "a server's configuration needs is_client=False and a certificate; load one with "
            "load_cert_chain, or make one with quicferry.server.self_signed"
        )
    if key is None:
        raise ConfigurationError("the certificate has no private key; load one with it")
    if not belong_together(certificate, key):
        raise ConfigurationError(
            "the private key is not that of the certificate; load the two that belong together"
        )
    usable = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    if isinstance(key, rsa.RSAPrivateKey):
        usable = key.key_size >= _SMALLEST_RSA_KEY
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        usable = isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1)
    if not usable:
        raise ConfigurationError(
            "no client can use the certificate's key; make one that is ECDSA with the curve P-256 "
            f"or P-384, or RSA with 2048 bits (at least {_SMALLEST_RSA_KEY})"
        )
    for objection in (*_objections(certificate), *_objections_to_key(key)):
        logger.warning("clients may not accept the certificate: %s", objection)


def _objections(certificate: x509.Certificate) -> Iterator[str]:
    now = datetime.now(UTC)
    if now < certificate.not_valid_before_utc:
        begin = certificate.not_valid_before_utc
        yield f"it is valid only from {begin:%Y-%m-%d %H:%M} UTC on; look at this host's clock"
    if now > certificate.not_valid_after_utc:
        yield f"it was valid until {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; renew it"
    try:
        known = {type(each.value): each.value for each in certificate.extensions}
    except ValueError:
        yield "its extensions are damaged"
        return
    if x509.SubjectAlternativeName not in known:
        yield "it has no subject alternative name, so it is good for no name and no address"
    usages = known.get(x509.ExtendedKeyUsage)
    if isinstance(usages, x509.ExtendedKeyUsage) and not _FOR_SERVERS & set(usages):
        yield "its extended key usage is not that of a server"
    usage = known.get(x509.KeyUsage)
    if isinstance(usage, x509.KeyUsage) and not usage.digital_signature:
        yield "its key usage does not allow digital signatures (RFC 8446 4.4.2.2)"


def _objections_to_key(key: object) -> Iterator[str]:
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size < _COMMON_RSA_KEY:
        yield f"its key has {key.key_size} bits, and many clients want {_COMMON_RSA_KEY}"
    if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey):
        yield "browsers know no keys of this kind (Ed25519, Ed448)"


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
