from __future__ import annotations

import os
import re
import stat
import tempfile
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID
from relocation.credentials import issue

from quicferry.relocation.errors import IdentityError
from quicferry.relocation.link.identity import (
    CA,
    CERTIFICATE,
    KEY,
    PEERS,
    Identity,
    make_identities,
)
from quicferry.server.certificate import HOST_VALIDITY

NOBODY = 65534
A, B, C = "a.example.org", "192.0.2.7", "2001:db8::1"


def read_certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_hosts_trust_each_other_and_not_themselves(tmp_path: Path) -> None:
    folders = make_identities(tmp_path / "new" / "identities", [A, B, C])
    assert folders == {host: tmp_path / "new" / "identities" / host for host in (A, B, C)}
    own = {host: (folder / CERTIFICATE).read_bytes() for host, folder in folders.items()}
    for host, folder in folders.items():
        others = [pem for other, pem in own.items() if other != host]
        assert (folder / PEERS).read_bytes() == b"".join(others)
        identity = Identity.load(folder)
        assert identity.name == host
        assert len(identity.peers) == 2


def test_what_a_certificate_is_good_for(tmp_path: Path) -> None:
    folders = make_identities(tmp_path, [A, B])
    certificate = read_certificate(folders[A] / CERTIFICATE)
    extensions = certificate.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [A]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    assert usage == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc > HOST_VALIDITY
    other = read_certificate(folders[B] / CERTIFICATE).extensions
    addresses = other.get_extension_for_class(x509.SubjectAlternativeName).value
    assert addresses.get_values_for_type(x509.IPAddress) == [ip_address(B)]


def test_only_the_owner_can_read_the_key(tmp_path: Path) -> None:
    folder = make_identities(tmp_path, [A, B])[A]
    assert stat.S_IMODE((folder / KEY).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_nothing_is_overwritten_or_half_made(tmp_path: Path) -> None:
    make_identities(tmp_path, [A, B])
    before = (tmp_path / A / KEY).read_bytes()
    with pytest.raises(IdentityError, match=r"there is .* already"):
        make_identities(tmp_path, [C, A])
    assert (tmp_path / A / KEY).read_bytes() == before
    assert not (tmp_path / C).exists()


@pytest.mark.parametrize(
    "hosts",
    [[], [A], [A, A], [A, ""], [A, ".."], [A, "../b"], [A, "/b"], [A, "b\n"], [A, "bücher"]],
)
def test_hosts_that_are_none(tmp_path: Path, hosts: list[str]) -> None:
    with pytest.raises(IdentityError):
        make_identities(tmp_path / "identities", hosts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [CERTIFICATE, KEY, PEERS])
def test_missing_file(tmp_path: Path, name: str) -> None:
    folder = make_identities(tmp_path, [A, B])[A]
    (folder / name).unlink()
    with pytest.raises(IdentityError, match=f"{name}.*quicferry agent init"):
        Identity.load(folder)


@pytest.mark.parametrize("name", [CERTIFICATE, KEY, PEERS])
def test_file_that_makes_no_sense(tmp_path: Path, name: str) -> None:
    folder = make_identities(tmp_path, [A, B])[A]
    (folder / name).write_text("SECRET nonsense")
    with pytest.raises(IdentityError, match=name) as caught:
        Identity.load(folder)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_key_that_others_can_read(tmp_path: Path, mode: int) -> None:
    key = make_identities(tmp_path, [A, B])[A] / KEY
    key.chmod(mode)
    with pytest.raises(IdentityError, match=f"chmod 600 {key}"):
        Identity.load(key.parent)


def test_list_that_others_can_write(tmp_path: Path) -> None:
    peers = make_identities(tmp_path, [A, B])[A] / PEERS
    peers.chmod(0o666)
    with pytest.raises(IdentityError, match=f"chmod go-w {peers}"):
        Identity.load(peers.parent)


def test_key_of_another_certificate(tmp_path: Path) -> None:
    folders = make_identities(tmp_path, [A, B])
    (folders[A] / KEY).write_bytes((folders[B] / KEY).read_bytes())
    with pytest.raises(IdentityError, match="cannot be used together"):
        Identity.load(folders[A])


@pytest.mark.parametrize("days", [(-2, -1), (1, 2)])
def test_certificate_that_is_not_valid_now(tmp_path: Path, days: tuple[float, float]) -> None:
    with pytest.raises(IdentityError, match="is valid from"):
        issue(days=days).with_peers(tmp_path / "host", issue())


def test_list_and_authority_contradict_each_other(tmp_path: Path) -> None:
    folder = make_identities(tmp_path, [A, B])[A]
    (folder / CA).write_bytes(issue(may_sign=True).pem)
    with pytest.raises(IdentityError, match="remove one of them"):
        Identity.load(folder)


def test_nothing_secret_is_shown(tmp_path: Path) -> None:
    shown = repr(Identity.load(make_identities(tmp_path, [A, B])[A]))
    assert "PRIVATE" not in shown
    assert "SSLContext" not in shown


def test_encrypted_key(tmp_path: Path) -> None:
    folder = make_identities(tmp_path, [A, B])[A]
    key = load_pem_private_key((folder / KEY).read_bytes(), None)
    encrypted = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"x"))
    (folder / KEY).write_bytes(encrypted)
    with pytest.raises(IdentityError, match=r"is encrypted.*openssl pkey"):
        Identity.load(folder)


def test_files_with_line_ends_of_other_systems(tmp_path: Path) -> None:
    folder = make_identities(tmp_path, [A, B, C])[A]
    for name in (CERTIFICATE, KEY, PEERS):
        path = folder / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(Identity.load(folder).peers) == 2


@pytest.fixture
def public() -> Iterator[Path]:
    """Provide a directory that every user can enter."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("name", [CERTIFICATE, KEY, PEERS])
def test_an_identity_of_another_user(public: Path, name: str) -> None:
    """It is there, so nothing has to be made anew."""
    folder = make_identities(public, [A, B])[A]
    for path in (folder, *folder.iterdir()):
        os.chown(path, NOBODY, NOBODY)
    assert load_as(NOBODY, folder) == ""
    os.chown(folder / name, 0, 0)
    (folder / name).chmod(0o600)
    said = load_as(NOBODY, folder)
    assert re.match(rf"user nobody \(process \d+\) may not read {folder / name};", said)
    assert f"chown -R nobody {folder}" in said
    assert "agent init" not in said


def load_as(user: int, folder: Path) -> str:
    """Return what is wrong with an identity when another user reads it."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setgroups([])
        os.setuid(user)
        try:
            Identity.load(folder)
        except IdentityError as exc:
            os.write(writer, str(exc).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.wait()
    with os.fdopen(reader) as said:
        return said.read()
