"""Certificates and keys are read as Python's `ssl` module reads them."""

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from loopback import client_configuration, http_client, served, server_configuration
from relocation.credentials import Credentials, issue

from quicferry import Configuration
from quicferry.transport import CredentialError

OLD, NEW = PrivateFormat.TraditionalOpenSSL, PrivateFormat.PKCS8
PARAMETERS = b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"


@cache
def authority() -> Credentials:
    return issue("root.example", may_sign=True)


@cache
def between() -> Credentials:
    return issue("intermediate.example", signer=authority(), may_sign=True)


@cache
def leaf() -> Credentials:
    return issue(signer=between())


def chain() -> bytes:
    return leaf().pem + between().pem


def key(form: PrivateFormat = NEW, password: bytes = b"") -> bytes:
    encryption = BestAvailableEncryption(password) if password else NoEncryption()
    return leaf().key.private_bytes(Encoding.PEM, form, encryption)


def crlf(data: bytes) -> bytes:
    return data.replace(b"\n", b"\r\n")


def trusted(credentials: Credentials) -> bytes:
    """Return a certificate as `openssl x509 -trustout` writes it."""
    body = b64encode(credentials.certificate.public_bytes(Encoding.DER) + b"\x30\x00")
    lines = [body[start : start + 64] for start in range(0, len(body), 64)]
    label = b"TRUSTED CERTIFICATE-----"
    return b"\n".join([b"-----BEGIN " + label, *lines, b"-----END " + label, b""])


CHAINS: dict[str, Callable[[], bytes]] = {
    "as usual": chain,
    "CRLF": lambda: crlf(chain()),
    "both": lambda: crlf(leaf().pem) + between().pem,
    "no final line end": lambda: chain().rstrip(),
    "text around": lambda: b"subject: me\n" + leaf().pem + b"\nissuer:\n" + between().pem + b"end",
    "blanks": lambda: chain().replace(b"-----\n", b"----- \n"),
    "trusted": lambda: trusted(leaf()) + between().pem,
    "old name": lambda: chain().replace(b" CERTIFICATE", b" X509 CERTIFICATE"),
}
KEYS: dict[str, Callable[[], bytes]] = {
    "as usual": key,
    "CRLF": lambda: crlf(key()),
    "old": lambda: key(OLD),
    "parameters": lambda: PARAMETERS + key(OLD),
    "parameters, CRLF": lambda: crlf(PARAMETERS + key(OLD)),
    "no final line end": lambda: key().rstrip(),
    "text before": lambda: b"Key Attributes: <No Attributes>\n" + key(),
}
WHOLE: dict[str, Callable[[], bytes]] = {
    "key last": lambda: chain() + key(),
    "key first": lambda: key() + chain(),
    "key between": lambda: leaf().pem + key() + between().pem,
    "old key first": lambda: PARAMETERS + key(OLD) + chain(),
    "CRLF": lambda: crlf(chain() + key()),
}


def read(folder: Path, certificates: bytes, private: bytes | None = None) -> Configuration:
    """Read it, and let Python's `ssl` do so too."""
    (folder / "chain.pem").write_bytes(certificates)
    keyfile = None
    if private is not None:
        keyfile = folder / "key.pem"
        keyfile.write_bytes(private)
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(folder / "chain.pem", keyfile)
    configuration = server_configuration()
    configuration.load_cert_chain(folder / "chain.pem", keyfile)
    return configuration


def assert_complete(configuration: Configuration) -> None:
    assert configuration.certificate == leaf().certificate
    assert configuration.certificate_chain == [between().certificate]
    assert configuration.private_key.public_key() == leaf().key.public_key()


@pytest.mark.parametrize("kind", CHAINS)
def test_chains(tmp_path: Path, kind: str) -> None:
    assert_complete(read(tmp_path, CHAINS[kind](), key()))


@pytest.mark.parametrize("kind", KEYS)
def test_keys(tmp_path: Path, kind: str) -> None:
    assert_complete(read(tmp_path, chain(), KEYS[kind]()))


@pytest.mark.parametrize("kind", WHOLE)
def test_one_file_for_all(tmp_path: Path, kind: str) -> None:
    assert_complete(read(tmp_path, WHOLE[kind]()))
    assert_complete(read(tmp_path, WHOLE[kind](), WHOLE[kind]()))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("given", ["file", "data", "field"])
async def test_clients_trust_what_they_are_told(tmp_path: Path, end: str, given: str) -> None:
    authorities = (issue("other.example", may_sign=True).pem + authority().pem).replace(
        b"\n", end.encode()
    )
    (tmp_path / "ca.pem").write_bytes(authorities)
    configuration = client_configuration()
    if given == "file":
        configuration.load_verify_locations(cafile=str(tmp_path / "ca.pem"))
    elif given == "data":
        configuration.load_verify_locations(cadata=authorities)
    else:
        configuration = Configuration(cadata=authorities)
    server = read(tmp_path, crlf(chain()), crlf(key()))
    async with (
        served(configuration=server) as running,
        http_client(running, configuration=configuration) as client,
    ):
        assert (await client.request("POST", "/echo", body=b"it is you")).body == b"it is you"


def test_an_encrypted_key_and_its_password(tmp_path: Path) -> None:
    (tmp_path / "chain.pem").write_bytes(chain())
    configuration = server_configuration()
    for form in (NEW, OLD):
        (tmp_path / "key.pem").write_bytes(crlf(key(form, b"open sesame")))
        for password in (b"open sesame", "open sesame"):
            configuration.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem", password)
            assert_complete(configuration)
        with pytest.raises(CredentialError, match=r"key\.pem is encrypted.*openssl pkey"):
            configuration.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
        with pytest.raises(CredentialError, match="another password") as caught:
            configuration.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem", "SECRET")
        assert "SECRET" not in str(caught.value)
    (tmp_path / "key.pem").write_bytes(key())
    configuration.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem", "of no use")


@pytest.mark.parametrize(
    ("certificates", "private", "message"),
    [
        (b"", None, "chain.pem holds no certificate"),
        (b"\0\xff" * 1000, None, "chain.pem holds no certificate"),
        (b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----", None, "is damaged"),
        (b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----", None, "is damaged"),
        (None, b"", "key.pem holds no private key"),
        (None, b"-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----", "is damaged"),
        (None, b"-----BEGIN PRIVATE KEY-----", "holds no private key"),
    ],
)
def test_nonsense(
    tmp_path: Path, certificates: bytes | None, private: bytes | None, message: str
) -> None:
    (tmp_path / "chain.pem").write_bytes(chain() if certificates is None else certificates)
    (tmp_path / "key.pem").write_bytes(key() if private is None else private)
    configuration = Configuration(is_client=False)
    with pytest.raises(CredentialError, match=message):
        configuration.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
    assert configuration.certificate is None
    assert configuration.private_key is None


def test_what_does_not_belong_together(tmp_path: Path) -> None:
    (tmp_path / "chain.pem").write_bytes(chain())
    other = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key.pem").write_bytes(other.private_bytes(Encoding.PEM, NEW, NoEncryption()))
    with pytest.raises(CredentialError, match=r"key\.pem is not the key of the certificate in"):
        server_configuration().load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
    (tmp_path / "chain.pem").write_bytes(between().pem + leaf().pem)
    (tmp_path / "key.pem").write_bytes(key())
    with pytest.raises(CredentialError, match=r"certificate in place 2 of .* put that first"):
        server_configuration().load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")


@pytest.mark.parametrize("path", ["/nowhere", "/", "a\0b"])
def test_files_that_cannot_be_read(path: str) -> None:
    with pytest.raises(CredentialError, match="cannot read"):
        Configuration(is_client=False).load_cert_chain(path)
    with pytest.raises(CredentialError, match="cannot read"):
        Configuration().load_verify_locations(cafile=path)


def test_authorities_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(key())
    with pytest.raises(CredentialError, match="holds no certificate"):
        Configuration().load_verify_locations(cafile=str(tmp_path / "ca.pem"))
    with pytest.raises(CredentialError, match="cadata holds no certificate"):
        Configuration(cadata=key())
