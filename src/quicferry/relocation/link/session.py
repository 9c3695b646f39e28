"""TLS between two hosts that know each other, sans-IO: bytes in, bytes out.

asyncio's own TLS is not used, because it does not send the alert that tells a peer why it is not
accepted, and because here the peer's certificate is looked at before anything else is.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Any, Self

from ..errors import ChannelError, ChannelProblem
from .identity import (
    ALPN,
    CA,
    CERTIFICATE,
    PEERS,
    Identity,
    Trust,
    is_named,
    names_of,
    peer_name,
)

_RECORD = 1 << 14
"""The largest content of a TLS record (RFC 8446 5.1)."""

_MISMATCHES = (62, 64)
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH (X509_STORE_CTX_get_error(3))."""


class Session:
    """One end of a TLS connection; made by `connecting` or `accepting`.

    Args:
        identity: What this end proves itself with.
        context: Of this end.
        host: Whom the peer's certificate has to name; empty if it may be any that is trusted.
        options: For `ssl.SSLContext.wrap_bio`.

    Attributes:
        peer: What the peer's certificate calls it; empty until the handshake is done.
        is_over: Whether the peer has said that it sends no more.
    """

    def __init__(
        self, identity: Identity, context: ssl.SSLContext, host: str = "", **options: Any
    ) -> None:
        self.peer = ""
        self._host = host
        self.is_over = False
        self._identity = identity
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, **options)

    @classmethod
    def connecting(cls, identity: Identity, host: str) -> Self:
        """Return the end that connects to `host`."""
        context = identity.client_context()
        host = host.removesuffix(".")
        return cls(
            identity, context, host, server_hostname=host if context.check_hostname else None
        )

    @classmethod
    def accepting(cls, identity: Identity) -> Self:
        """Return the end that is connected to."""
        return cls(identity, identity.server_context(), server_side=True)

    def feed(self, data: bytes) -> None:
        """Take what has come from the network."""
        self._incoming.write(data)

    def to_send(self) -> bytes:
        """Return what is to be sent; to be called after everything else, errors included."""
        return self._outgoing.read()

    def shake_hands(self) -> bool:
        """Go on with the handshake, and return whether it is done.

        The end that connects is done before the peer has looked at its certificate. If the peer
        does not accept it, the first `read` says so.

        Raises:
            ChannelError: If the peer does not speak this protocol or is not accepted.
        """
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except ssl.SSLError as exc:
            raise self._explain(exc) from None
        certificate = self._tls.getpeercert(binary_form=True)
        if certificate is None or not self._identity.accepts(certificate):
            self.close()
            raise self._not_trusted("it is not on the list itself")
        if self._host and self._identity.trust is Trust.PEERS:
            names = names_of(certificate)
            if not is_named(names, self._host):
                self.close()
                raise self._wrong_host(f"it names {', '.join(names)}, and not {self._host}")
        self.peer = peer_name(certificate)
        if self._tls.selected_alpn_protocol() != ALPN:
            self.close()
            raise ChannelError(
                ChannelProblem.WRONG_PROTOCOL,
                f"it does not speak {ALPN}; run the same quicferry on both hosts",
            )
        return True

    def read(self) -> bytes:
        """Return some of what the peer has sent, nothing if there is no more for now.

        Raises:
            ChannelError: If the peer has ended the session for a reason.
        """
        try:
            data = self._tls.read(_RECORD)
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLError as exc:
            raise self._explain(exc) from None
        self.is_over = not data
        return data

    def write(self, data: bytes) -> None:
        """Encrypt what is to be sent to the peer.

        Raises:
            ChannelError: If the session has ended.
        """
        view = memoryview(data)
        try:
            while view:
                view = view[self._tls.write(view) :]
        except ssl.SSLError as exc:
            raise self._explain(exc) from None

    def close(self) -> None:
        """Tell the peer that nothing follows."""
        with suppress(ssl.SSLError):  # there is no handshake yet, or nothing left to be said
            self._tls.unwrap()

    def _explain(self, error: ssl.SSLError) -> ChannelError:
        reason = (error.reason or "").upper()
        if isinstance(error, ssl.SSLCertVerificationError):
            if error.verify_code in _MISMATCHES:
                return self._wrong_host(f"it does not name {self._host}")
            return self._not_trusted(error.verify_message)
        if "PEER_DID_NOT_RETURN_A_CERTIFICATE" in reason:
            return self._not_trusted("it shows none")
        if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
            return ChannelError(
                ChannelProblem.NOT_TRUSTED_BY_PEER,
                f"it does not accept this host's certificate ({_words(reason)}); append "
                f"{self._identity.directory / CERTIFICATE} to the {PEERS} there, and start the "
                "agent there again",
            )
        return ChannelError(
            ChannelProblem.WRONG_PROTOCOL,
            f"it does not speak {ALPN} over TLS 1.3 ({_words(reason) or 'no reason given'}); look "
            "whether an agent listens there",
        )

    def _not_trusted(self, why: str) -> ChannelError:
        if self._identity.trust is Trust.CA:
            remedy = f"let an authority in {CA} sign it, and name the host as it does"
        else:
            remedy = f"append its {CERTIFICATE} to {self._identity.directory / PEERS}"
        return ChannelError(
            ChannelProblem.NOT_TRUSTED, f"its certificate is not accepted: {why}; {remedy}"
        )

    def _wrong_host(self, why: str) -> ChannelError:
        return ChannelError(
            ChannelProblem.WRONG_HOST,
            f"another host answers than was looked for, by its certificate: {why}; correct --to, "
            "or if that host is meant, say so with --peer NAME, a name in its certificate",
        )


def _words(reason: str) -> str:
    return reason.replace("_", " ").lower()
