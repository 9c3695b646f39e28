"""A session without a network: who refuses the other says so, and closes."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from relocation.credentials import LOCAL, issue, plain_client

from quicferry.relocation.errors import ChannelError, ChannelProblem
from quicferry.relocation.link.identity import Identity
from quicferry.relocation.link.session import Session


def shake_hands(client: Session, server: Session) -> dict[str, ChannelProblem]:
    """Carry what both say to each other; return who refuses the other, and why."""
    refused: dict[str, ChannelProblem] = {}
    for _ in range(4):
        for name, end, other in (("client", client, server), ("server", server, client)):
            if name not in refused:
                try:
                    end.shake_hands()
                except ChannelError as exc:
                    refused[name] = exc.problem
            other.feed(end.to_send())
    return refused


def hears_the_end(session: Session) -> bool:
    """Whether a session was told that nothing follows, and takes it for no error."""
    while session.read():
        pass
    return session.is_over


def two(tmp_path: Path) -> tuple[Identity, Identity]:
    client, server = issue("127.0.0.9"), issue()
    return (
        client.with_peers(tmp_path / "client", server),
        server.with_peers(tmp_path / "server", client),
    )


def test_both_are_known(tmp_path: Path) -> None:
    ours, theirs = two(tmp_path)
    client, server = Session.connecting(ours, LOCAL), Session.accepting(theirs)
    assert (client.peer, server.peer) == ("", "")
    assert shake_hands(client, server) == {}
    assert (client.peer, server.peer) == (f"host {LOCAL}", "host 127.0.0.9")
    client.write(b"hello")
    server.feed(client.to_send())
    assert server.read() == b"hello"
    assert not server.is_over


def test_a_client_with_a_certificate_that_is_not_on_the_list_itself(tmp_path: Path) -> None:
    listed, server = issue("127.0.0.9", may_sign=True), issue()
    signed = issue("127.0.0.9", name="signed", signer=listed)
    client = Session.connecting(signed.with_peers(tmp_path / "client", server), LOCAL)
    accepting = Session.accepting(server.with_peers(tmp_path / "server", listed))
    assert shake_hands(client, accepting) == {"server": ChannelProblem.NOT_TRUSTED}
    assert accepting.peer == ""
    assert hears_the_end(client)


def test_a_server_with_a_certificate_that_is_not_on_the_list_itself(tmp_path: Path) -> None:
    listed, client = issue(may_sign=True), issue("127.0.0.9")
    signed = issue(name="signed", signer=listed)
    connecting = Session.connecting(client.with_peers(tmp_path / "client", listed), LOCAL)
    server = Session.accepting(signed.with_peers(tmp_path / "server", client))
    assert shake_hands(connecting, server) == {"client": ChannelProblem.NOT_TRUSTED}
    assert connecting.peer == ""
    assert hears_the_end(server)


def test_a_server_that_is_known_and_another_one(tmp_path: Path) -> None:
    ours, theirs = two(tmp_path)
    client, server = Session.connecting(ours, "127.0.0.3"), Session.accepting(theirs)
    assert shake_hands(client, server) == {"client": ChannelProblem.WRONG_HOST}
    assert client.peer == ""
    assert hears_the_end(server)


@pytest.mark.parametrize("alpn", ["quicferry-handover/0", "h2"])
def test_a_client_that_speaks_something_else(tmp_path: Path, alpn: str) -> None:
    """It is known, but would not understand a word."""
    _, theirs = two(tmp_path)
    server = Session.accepting(theirs)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = plain_client(tmp_path / "client", alpn=alpn).wrap_bio(incoming, outgoing)
    problem = None
    for _ in range(4):
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            break
        server.feed(outgoing.read())
        if problem is None:
            try:
                server.shake_hands()
            except ChannelError as exc:
                problem = exc.problem
        incoming.write(server.to_send())
    assert problem is ChannelProblem.WRONG_PROTOCOL
    assert client.read() == b"", "it was told that nothing follows"
