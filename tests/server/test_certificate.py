from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from loopback import http_client, served, server_configuration

import quicferry
from quicferry import ClientMigration, Configuration
from quicferry.server import ConfigurationError, check_certificate, load_pem, self_signed


def test_names_and_addresses() -> None:
    pem, key = self_signed(["example.org", "127.0.0.1", "::1"])
    names = x509.load_pem_x509_certificate(pem).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert names.value.get_values_for_type(x509.DNSName) == ["example.org"]
    addresses = [ip_address("127.0.0.1"), ip_address("::1")]
    assert names.value.get_values_for_type(x509.IPAddress) == addresses
    assert key.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert self_signed(["example.org"]) != self_signed(["example.org"])


async def test_a_client_that_is_given_it_trusts_it() -> None:
    pem, key = self_signed(["127.0.0.1"])
    configuration = server_configuration()
    load_pem(configuration, pem, key)
    async with served(configuration=configuration) as server:
        trusting = Configuration(cadata=pem, server_migration=ClientMigration())
        async with http_client(server, configuration=trusting) as client:
            assert (await client.request("POST", "/", body=b"trusted")).body == b"trusted"


# What clients can use

NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a server")])
TODAY = datetime.now(UTC)


def sign(
    key: Any, *extensions: x509.ExtensionType, days: tuple[float, float] = (-1, 1)
) -> Configuration:
    """Return the configuration of a server with a certificate of its own."""
    builder = (
        x509.CertificateBuilder(NAME, NAME, key.public_key(), x509.random_serial_number())
        .not_valid_before(TODAY + timedelta(days=days[0]))
        .not_valid_after(TODAY + timedelta(days=days[1]))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    signs_itself = isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey)
    certificate = builder.sign(key, None if signs_itself else hashes.SHA256())
    return server_configuration_of(certificate, key)


def server_configuration_of(certificate: x509.Certificate, key: Any) -> Configuration:
    configuration = Configuration(is_client=False)
    configuration.certificate, configuration.private_key = certificate, key
    return configuration


SAN = x509.SubjectAlternativeName([x509.DNSName("localhost")])


def rsa_key(bits: int) -> Any:
    return rsa.generate_private_key(65537, bits)


def objections(configuration: Configuration, caplog: pytest.LogCaptureFixture) -> list[str]:
    with caplog.at_level(logging.WARNING, logger="quicferry.server"):
        check_certificate(configuration)
    return [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP256R1()),
        lambda: ec.generate_private_key(ec.SECP384R1()),
        lambda: rsa_key(2048),
    ],
)
def test_keys_that_every_client_can_use(
    make: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert objections(sign(make(), SAN), caplog) == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP521R1()),
        lambda: ec.generate_private_key(ec.SECP256K1()),
        lambda: dsa.generate_private_key(2048),
    ],
)
def test_keys_that_no_client_can_use(make: Callable[[], Any]) -> None:
    with pytest.raises(ConfigurationError, match="make one that is ECDSA"):
        check_certificate(sign(make(), SAN))


def test_a_key_of_another_certificate() -> None:
    one, other = (sign(ec.generate_private_key(ec.SECP256R1()), SAN) for _ in range(2))
    with pytest.raises(ConfigurationError, match="not that of the certificate"):
        check_certificate(server_configuration_of(one.certificate, other.private_key))
    with pytest.raises(ConfigurationError, match="no private key"):
        check_certificate(server_configuration_of(one.certificate, None))


def usage(digital_signature: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=True,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


@pytest.mark.parametrize(
    ("extensions", "days", "message"),
    [
        ([SAN], (-3, -1), "it was valid until .*; renew it"),
        ([SAN], (1, 3), "it is valid only from .* clock"),
        ([], (-1, 1), "no subject alternative name"),
        ([SAN, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])], (-1, 1), "of a server"),
        ([SAN, usage(False)], (-1, 1), "digital signatures"),
        ([SAN, usage(True)], (-1, 1), ""),
        ([SAN, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])], (-1, 1), ""),
    ],
)
def test_what_clients_object_to(
    extensions: list[x509.ExtensionType],
    days: tuple[float, float],
    message: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    said = objections(sign(key, *extensions, days=days), caplog)
    assert len(said) == bool(message)
    assert all(re.search(message, each) for each in said)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rsa_key(1024), "1024 bits, and many clients want 2048"),
        (ed25519.Ed25519PrivateKey.generate, "browsers know no keys"),
        (ed448.Ed448PrivateKey.generate, "browsers know no keys"),
    ],
)
def test_keys_that_many_clients_object_to(
    make: Callable[[], Any], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    (said,) = objections(sign(make(), SAN), caplog)
    assert message in said


async def test_a_server_does_not_start_with_what_no_client_can_use() -> None:
    configuration = sign(ec.generate_private_key(ec.SECP521R1()), SAN)
    with pytest.raises(ConfigurationError, match="make one that is ECDSA"):
        await quicferry.serve("127.0.0.1", 0, configuration=configuration)
