"""A connection whose whole process is carried: it falls silent, and is the copy elsewhere."""

from __future__ import annotations

import pytest
from aioquic.quic.events import ConnectionTerminated
from simulated_pair import AWAY, Pair, Until, pair
from support import SYMMETRIC, TRANSFER, assert_works

from quicferry.protocol import ServerMigration
from quicferry.transport import (
    RESERVED_NUMBERS,
    Connection,
    SnapshotError,
    activate,
    commit,
    last_words,
    resume_after_freeze,
)
from quicferry.transport.snapshot.standstill import become_copy, fall_silent


def assert_silent(it: Pair) -> None:
    """It neither sends nor hears, and has no timer."""
    server = it.server.migrating
    server.send_ping(1)
    assert server.is_sealed
    assert server.datagrams_to_send(it.network.now) == []
    assert server.get_timer() is None
    assert server.next_event() is None


def test_it_is_silent_until_it_goes_on() -> None:
    with pair() as it:
        fall_silent(it.server.migrating, now=it.network.now)
        assert_silent(it)
        it.network.run_for(5)
        resume_after_freeze(it.server.migrating, now=it.network.now)
        it.server.flush()
        it.exchange(TRANSFER)


def test_one_that_goes_on_has_its_whole_idle_time() -> None:
    """What the client has sent meanwhile was not heard."""
    with pair() as it:
        server = it.server.migrating
        server._close_at = it.network.now + 0.001
        fall_silent(server, now=it.network.now)
        it.network.run_for(5)
        resume_after_freeze(server, now=it.network.now)
        assert server.quiet_since == it.network.now


@pytest.mark.parametrize("away_for", [0.1, 100.0])
def test_it_lives_elsewhere(away_for: float) -> None:
    """Time stands still, also for the idle timer."""
    with pair(server=ServerMigration()) as it:
        server = it.server.migrating
        it.imminent(SYMMETRIC)
        it.requests.start([[TRANSFER]])
        it.network.run_for(0.01)
        it.host.freeze()
        fall_silent(server, now=it.network.now)
        server._close_at = it.network.now + 1
        for _ in range(int(away_for)):
            server.handle_timer(it.network.now)
        become_copy(server)
        assert_silent(it)
        start = it.network.now + away_for
        activate(server, now=start)
        assert server._close_at == start + 1
        server._close_at += 60
        it.network.run_for(0.1)
        it.host.resume(AWAY)
        it.network.run_until(lambda: it.requests.done, limit=60, what="the transfer")
        commit(server)
        assert_works(it, AWAY)


def test_the_copy_has_the_reserve_and_its_source_skips_it() -> None:
    with pair() as it:
        server = it.server.migrating
        first = server._packet_number
        fall_silent(server, now=it.network.now)
        become_copy(server)
        activate(server, now=it.network.now)
        server._packet_number = first + RESERVED_NUMBERS - 1
        server.send_ping(1)
        assert server.datagrams_to_send(it.network.now) == []
        commit(server)
        assert server.datagrams_to_send(it.network.now)


def test_only_one_order_of_calls() -> None:
    with pair() as it:
        server, now = it.server.migrating, it.network.now

        def refused(call: str) -> None:
            calls = {
                "fall_silent": lambda: fall_silent(server, now=now),
                "become_copy": lambda: become_copy(server),
                "activate": lambda: activate(server, now=now),
                "resume": lambda: resume_after_freeze(server, now=now),
                "commit": lambda: commit(server),
            }
            for name in call.split():
                with pytest.raises(SnapshotError):
                    calls[name]()

        refused("become_copy activate resume commit")
        fall_silent(server, now=now)
        refused("fall_silent activate commit")
        become_copy(server)
        refused("fall_silent become_copy resume commit")
        activate(server, now=now)
        refused("fall_silent become_copy activate resume")
        commit(server)
        refused("become_copy activate resume commit")
        it.exchange()


def test_what_cannot_fall_silent() -> None:
    with pair() as it:
        with pytest.raises(SnapshotError, match="only servers move"):
            fall_silent(it.client.migrating, now=it.network.now)
        it.server.connection.close()
        with pytest.raises(SnapshotError, match="being closed"):
            fall_silent(it.server.migrating, now=it.network.now)
    with pair(until=Until.CLIENT_HELLO) as it:
        server = it.server.connection
        assert isinstance(server, Connection)
        with pytest.raises(SnapshotError, match="not confirmed"):
            fall_silent(server, now=it.network.now)
        assert not server.is_sealed


@pytest.mark.parametrize("are_sent", [True, False])
def test_last_words(are_sent: bool) -> None:
    """They are those of a copy: what was not sent has not been said, and the source may go on."""
    with pair() as it:
        server = it.server.migrating
        words = last_words(
            server,
            configuration=server.configuration,
            now=it.network.now,
            reason_phrase="goodbye",
        )
        assert words
        assert server.is_sealed
        if are_sent:
            for data, address in words:
                it.network.send(data, it.host.address, address)
            it.network.run_for(1)
            assert isinstance(it.client.terminated, ConnectionTerminated)
            assert it.client.terminated.reason_phrase == "goodbye"
        else:
            resume_after_freeze(server, now=it.network.now)
            it.server.flush()
            it.exchange(TRANSFER)
