"""What a host proves itself with when servers are handed over, and whom it trusts.

An identity is a directory with three files in PEM format:

- ``certificate.pem``: the host's certificate;
- ``key.pem``: its private key, which only its owner can read;
- ``peers.pem``: the certificates of the hosts that it deals with. Exactly these are accepted: who
  has signed them and what they have signed does not count. Or, instead of it, ``ca.pem``: the
  certificates of authorities. Whatever they have signed is accepted.

Either way the certificate of the end that is connected to must name the host that was looked for
(RFC 9525 6), since a server with its keys is not for every host that is trusted with some other
one.

Both ends of a connection prove themselves, over TLS 1.3 and nothing older. The files are read once.
"""

from __future__ import annotations

import datetime
import enum
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from quicferry.server.certificate import host_certificate
from quicferry.transport import (
    CredentialError,
    belong_together,
    certificates_in,
    current_user,
    may_not_read,
    private_key_in,
    read_file,
)

from ..errors import IdentityError

CERTIFICATE = "certificate.pem"
KEY = "key.pem"
PEERS = "peers.pem"
CA = "ca.pem"

ALPN = "quicferry-handover/1"

_READABLE_BY_OTHERS = 0o077
_WRITABLE_BY_OTHERS = 0o022


class Trust(enum.Enum):
    """Whom an identity trusts."""

    PEERS = "peers"
    CA = "ca"


@dataclass(frozen=True)
class Identity:
    """What a host proves itself with, and whom it trusts; made by `load`.

    Attributes:
        directory: Where it is.
        name: The name in the host's certificate.
        trust: Whether it trusts certain hosts, or an authority.
        peers: The certificates that it trusts, DER; empty where it trusts an authority.
    """

    directory: Path
    name: str
    trust: Trust
    peers: frozenset[bytes]
    _contexts: dict[int, ssl.SSLContext] = field(repr=False, compare=False, default_factory=dict)

    @classmethod
    def load(cls, directory: Path | str) -> Self:
        """Read an identity, and check that it can be used.

        Raises:
            IdentityError: If it cannot; the text says why.
        """
        directory = Path(directory)
        certificate = _certificates(directory / CERTIFICATE)[0]
        key = directory / KEY
        try:
            private_key = private_key_in(read_file(key), str(key))
        except CredentialError as exc:
            raise _unusable(key, exc) from None
        if not belong_together(certificate, private_key):
            raise IdentityError(
                f"{directory / CERTIFICATE} and {key} cannot be used together; make new ones with: "
                "quicferry agent init"
            )
        if key.stat().st_mode & _READABLE_BY_OTHERS:
            raise IdentityError(f"others may read {key}; run: chmod 600 {key}")
        now = datetime.datetime.now(datetime.UTC)
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise IdentityError(
                f"{directory / CERTIFICATE} is valid from "
                f"{certificate.not_valid_before_utc:%Y-%m-%d} to "
                f"{certificate.not_valid_after_utc:%Y-%m-%d} only; look at this host's clock, or "
                "make a new one with: quicferry agent init"
            )
        trust = Trust.CA if (directory / CA).exists() else Trust.PEERS
        if trust is Trust.CA and (directory / PEERS).exists():
            raise IdentityError(f"{directory} has both {CA} and {PEERS}; remove one of them")
        listed = directory / (CA if trust is Trust.CA else PEERS)
        trusted = _certificates(listed)
        if listed.stat().st_mode & _WRITABLE_BY_OTHERS:
            raise IdentityError(f"others may write {listed}; run: chmod go-w {listed}")
        peers = frozenset(each.public_bytes(Encoding.DER) for each in trusted)
        name = _name(certificate)
        identity = cls(directory, name, trust, peers if trust is Trust.PEERS else frozenset())
        identity.server_context()  # does all fit together?
        identity.client_context()
        return identity

    def server_context(self) -> ssl.SSLContext:
        """Return what an agent accepts connections with."""
        return self._context(ssl.PROTOCOL_TLS_SERVER)

    def client_context(self) -> ssl.SSLContext:
        """Return what a source connects with."""
        return self._context(ssl.PROTOCOL_TLS_CLIENT)

    def accepts(self, certificate: bytes | None) -> bool:
        """Return whether a peer that TLS has authenticated is trusted.

        Args:
            certificate: The peer's, DER.
        """
        if certificate is None:
            return False
        return self.trust is Trust.CA or certificate in self.peers

    def _context(self, protocol: int) -> ssl.SSLContext:
        """Return the context for one end; the files are read the first time, by `load`."""
        if protocol not in self._contexts:
            self._contexts[protocol] = self._read_context(protocol)
        return self._contexts[protocol]

    def _read_context(self, protocol: int) -> ssl.SSLContext:
        # Not ssl.create_default_context: that trusts the system's authorities, and writes secrets
        # where SSLKEYLOGFILE says.
        context = ssl.SSLContext(protocol)
        if protocol == ssl.PROTOCOL_TLS_CLIENT:
            # Of a list, `Session` looks at the name itself, and can say which ones there are.
            context.check_hostname = self.trust is Trust.CA
            context.hostname_checks_common_name = False
        else:
            context.num_tickets = 0  # every connection is authenticated anew
        # What is trusted is enough by itself, whoever has signed it.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols([ALPN])
        trusted = self.directory / (CA if self.trust is Trust.CA else PEERS)
        try:
            context.load_cert_chain(
                self.directory / CERTIFICATE, self.directory / KEY, _no_password
            )
            context.load_verify_locations(trusted)
        except (OSError, ValueError) as exc:
            raise IdentityError(
                f"{self.directory / CERTIFICATE} and {self.directory / KEY} cannot be used "
                f"together: {getattr(exc, 'reason', None) or exc}; make new ones with: "
                "quicferry agent init"
            ) from None
        return context


def make_identities(directory: Path, hosts: Sequence[str]) -> dict[str, Path]:
    """Make an identity for each of some hosts, which trust one another and nobody else.

    Args:
        directory: Each host gets a directory of its name in it, to be copied there.
        hosts: Their names or IP addresses.

    Returns:
        The directory of each host.

    Raises:
        IdentityError: If there are too few hosts, a name twice or unfit for a directory, or there
            is something already; then nothing was made.
        OSError: If the files cannot be written.
    """
    if len(hosts) < 2 or len(set(hosts)) < len(hosts):
        raise IdentityError("name the hosts that shall trust one another: two or more, each once")
    folders = {host: directory / host for host in hosts}
    for host, folder in folders.items():
        if not host or host in (".", "..") or "/" in host or not host.isprintable():
            raise IdentityError(f"{host!r} is not the name or the address of a host")
        if folder.exists():
            raise IdentityError(f"there is {folder} already; remove it, or name another directory")
    try:
        made = {host: host_certificate(host) for host in hosts}
    except ValueError:
        raise IdentityError("write the names of hosts as in DNS, in ASCII (RFC 5890)") from None
    for host, folder in folders.items():
        folder.mkdir(mode=0o700, parents=True)
        certificate, key = made[host]
        (folder / CERTIFICATE).write_bytes(certificate)
        (folder / KEY).touch(mode=0o600, exist_ok=False)
        (folder / KEY).write_bytes(key)
        others = [pem for other, (pem, _) in made.items() if other != host]
        (folder / PEERS).touch(mode=0o644)  # whatever the umask allows to others
        (folder / PEERS).write_bytes(b"".join(others))
    return folders


def peer_name(certificate: bytes | None) -> str:
    """Return the name in a peer's certificate, DER, for people to read."""
    return _name(x509.load_der_x509_certificate(certificate)) if certificate else "unknown"


def names_of(certificate: bytes) -> tuple[str, ...]:
    """Return the names and IP addresses of the host that a certificate, DER, belongs to.

    A certificate without any (RFC 5280 4.2.1.6) has its common name.
    """
    parsed = x509.load_der_x509_certificate(certificate)
    try:
        found = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return (_name(parsed),)
    addresses = map(str, found.get_values_for_type(x509.IPAddress))
    return (*found.get_values_for_type(x509.DNSName), *addresses)


def is_named(names: Sequence[str], host: str) -> bool:
    """Return whether a host is among the names and IP addresses of a certificate."""
    return _comparable(host) in map(_comparable, names)


def _comparable(name: str) -> str:
    try:
        return str(ip_address(name.partition("%")[0]))  # no certificate knows of a zone
    except ValueError:
        return name.lower().removesuffix(".")


def _name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else certificate.subject.rfc4514_string()


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return certificates_in(read_file(path), str(path))
    except CredentialError as exc:
        raise _unusable(path, exc) from None


def _unusable(path: Path, error: CredentialError) -> IdentityError:
    """Return the error for a file of an identity; who must not read it needs no other one."""
    if isinstance(error.__cause__, PermissionError):
        owner = f"chown -R {current_user()} {path.parent}"
        return IdentityError(f"{may_not_read(str(path))}; give the identity to that user: {owner}")
    return IdentityError(f"{error}; make it with: quicferry agent init")


def _no_password() -> str:
    """Answer OpenSSL, which would ask at the terminal otherwise; no key that we make has one."""
    return ""
