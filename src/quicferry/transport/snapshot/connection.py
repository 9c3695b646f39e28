"""Connection snapshots: a live connection as bytes, and as a connection again elsewhere.

The states of a connection that is carried away, and of its copy (`seal` says why)::

    source   open --freeze--> frozen --resume_after_freeze--> open
    copy     thaw --> thawed --activate--> provisional --commit--> open

Packets with stream data that are in flight are carried as such; what else is in flight is given up
for lost, and waits to be sent again (`snapshot_flight`). What is not carried: qlog traces, the
details of the congestion controller beyond window and threshold, and the PTO back-off.

A source may go on even after its copy was active: no packet number is then used twice. But it does
not know what the client and the copy have told each other meanwhile, and what the copy has
acknowledged does not come again. So it should be decided who owns the connection before the copy
is activated; that the numbers are shared out is for the case that this goes wrong. The source
finds out when the client acknowledges a number that it has skipped, and closes the connection.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from aioquic import tls
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration

from quicferry.protocol import MigrationProtocol, ServerMigration

from ..addresses import NetworkAddress
from ..connection import Connection
from ..http3.state import Http3State
from ..paths.server_side import ServerSide
from ..seal import SealState
from .events import CARRIED_EVENTS, capture_events, restore_events
from .flight import capture_flight, restore_flight, separate_flight
from .format import SnapshotError, decode, encode, prepare
from .handshake import begin_after_handshake
from .migration import capture_migration, restore_migration
from .parts import (
    capture_address,
    capture_connection_id,
    capture_keys,
    capture_packets,
    capture_path,
    capture_recovery,
    numbers_in,
    ranges_of,
    restore_connection_id,
    restore_keys,
    restore_packets,
    restore_path,
    restore_recovery,
)
from .records import Snapshot
from .standstill import activate, connection_obstacle, limit_numbers, shut
from .streams import (
    capture_local,
    capture_receiver,
    capture_remote,
    capture_sender,
    capture_streams,
    restore_local,
    restore_receiver,
    restore_remote,
    restore_sender,
    restore_streams,
)

_ONE_RTT = tls.Epoch.ONE_RTT
_ROUTING_EVENTS = (events.ConnectionIdIssued, events.ConnectionIdRetired)


def prepare_snapshots() -> None:
    """Get ready to freeze and thaw; the first snapshot takes some milliseconds longer otherwise."""
    for kind in (Snapshot, Http3State):
        prepare(kind)


def freeze(connection: Connection, *, now: float) -> bytes:
    """Seal a server's connection, and return what it is.

    Collect its migration events and the events of its handshake before.

    Args:
        connection: The connection. It sends, reads and reports nothing any more, until
            `resume_after_freeze`.
        now: The current time in seconds.

    Raises:
        SnapshotError: If it cannot be frozen; the text says why. It goes on then. Nothing has
            changed, except that one that holds too much data sends again what was in flight.
    """
    obstacle = _obstacle(connection)
    if obstacle is not None:
        raise SnapshotError(f"the connection cannot be frozen: {obstacle}")
    separate_flight(connection, now)
    data = encode(_capture(connection, now))
    shut(connection, SealState.FROZEN, now)
    return data


def thaw(data: bytes, *, configuration: QuicConfiguration, now: float) -> Connection:
    """Make a connection of a snapshot. It does nothing before it is activated.

    Its endpoint should route `Connection.own_connection_ids` to it. The limits that the client was
    told are those of the snapshot, whatever the configuration says.

    Args:
        data: What `freeze` returned.
        configuration: Of the server that the connection is to belong to.
        now: The current time in seconds, by the clock of this host.

    Raises:
        SnapshotError: If it is no snapshot, or one that this server cannot go on with.
        ValueError: If this is not the configuration of a server.
    """
    snapshot = decode(data, Snapshot)
    _check_fit(snapshot, configuration)
    configuration = replace(
        configuration,
        idle_timeout=snapshot.local.idle_timeout,
        max_datagram_frame_size=snapshot.local.max_datagram_frame_size,
        supported_versions=[snapshot.quic_version],
    )
    connection = Connection(
        configuration=configuration,
        original_destination_connection_id=snapshot.original_destination_cid,
    )
    begin_after_handshake(connection, snapshot.quic_version, snapshot.alpn)
    _restore(connection, snapshot, now)
    shut(connection, SealState.THAWED, now)
    limit_numbers(connection)
    return connection


def last_words(
    connection: Connection, *, configuration: QuicConfiguration, now: float, reason_phrase: str
) -> list[tuple[bytes, NetworkAddress]]:
    """Freeze a connection, and return the datagrams that would close it, with their destination.

    They are those of a copy, so the connection may still be resumed if they were not sent.

    Args:
        connection: The connection.
        configuration: Of its server.
        now: The current time in seconds.
        reason_phrase: A reason for the client to read.

    Raises:
        SnapshotError: As `freeze`.
    """
    untraced = replace(configuration, quic_logger=None)
    copy = thaw(freeze(connection, now=now), configuration=untraced, now=now)
    activate(copy, now=now)
    copy.close(reason_phrase=reason_phrase)
    return copy.datagrams_to_send(now)


def _obstacle(connection: Connection) -> str | None:
    if (obstacle := connection_obstacle(connection)) is not None:
        return obstacle
    if connection._migration_events:
        return "collect its migration events first"
    if any(not isinstance(e, (*_ROUTING_EVENTS, *CARRIED_EVENTS)) for e in connection._events):
        return "collect the events of its handshake first"
    return None


def _check_fit(snapshot: Snapshot, configuration: QuicConfiguration) -> None:
    if len(snapshot.host_cid) != configuration.connection_id_length:
        raise SnapshotError(
            f"the connection has connection IDs of {len(snapshot.host_cid)} bytes, and this server "
            f"of {configuration.connection_id_length}; use the same connection_id_length"
        )
    options = getattr(configuration, "server_migration", None)
    if snapshot.negotiated is not None and not isinstance(options, ServerMigration):
        raise SnapshotError(
            "the connection can migrate, and this server cannot; give it a server_migration"
        )


def _capture(connection: Connection, now: float) -> Snapshot:
    close_at = connection._close_at
    assert close_at is not None, "the idle timer runs from the first datagram on"
    assert connection._version is not None, "the handshake is confirmed"
    crypto = connection._crypto_streams[_ONE_RTT]
    local, client = connection.server_address, connection._client_address
    return Snapshot(
        quic_version=int(connection._version),
        original_destination_cid=bytes(connection.original_destination_connection_id),
        initial_source_cid=bytes(connection._local_initial_source_connection_id),
        alpn=connection.tls.alpn_negotiated,
        negotiated=None if connection.negotiated is None else int(connection.negotiated),
        knows_withdrawals=connection.knows_withdrawals,
        keys=capture_keys(connection),
        packets=capture_packets(connection, now),
        host_cid=bytes(connection.host_cid),
        host_cids=tuple(map(capture_connection_id, connection._host_cids)),
        next_host_sequence=connection._host_cid_seq,
        peer_cid=capture_connection_id(connection._peer_cid),
        peer_cids=tuple(map(capture_connection_id, connection._peer_cid_available)),
        peer_sequences=ranges_of(connection._peer_cid_sequence_numbers),
        peer_retire_prior_to=connection._peer_retire_prior_to,
        retiring=tuple(connection._retire_connection_ids),
        server_address=None if local is None else capture_address(local),
        client_address=None if client is None else capture_address(client),
        client_cid=bytes(connection._client_cid),
        client_cid_is_new=connection._client_cid_is_new,
        paths=tuple(capture_path(path, now) for path in connection._network_paths),
        recovery=capture_recovery(connection),
        idle_in=close_at - now,
        local=capture_local(connection),
        remote=capture_remote(connection),
        streams=capture_streams(connection),
        flight=capture_flight(connection, now),
        streams_blocked_pending=connection._streams_blocked_pending,
        crypto_sender=capture_sender(crypto.sender),
        crypto_receiver=capture_receiver(crypto.receiver),
        handshake_done_pending=connection._handshake_done_pending,
        probe_pending=connection._probe_pending,
        pings=tuple(connection._ping_pending),
        datagrams=tuple(map(bytes, connection._datagrams_pending)),
        events=capture_events(connection._events),
        migration=capture_migration(connection, now),
    )


def _restore(connection: Connection, snapshot: Snapshot, now: float) -> None:
    connection._local_initial_source_connection_id = snapshot.initial_source_cid
    connection.stable_id = snapshot.initial_source_cid.hex()
    restore_keys(connection, snapshot.keys)
    restore_packets(connection, snapshot.packets, now)

    connection.host_cid = snapshot.host_cid
    connection._host_cids = [restore_connection_id(cid) for cid in snapshot.host_cids]
    connection._host_cid_seq = snapshot.next_host_sequence
    connection._peer_cid = restore_connection_id(snapshot.peer_cid)
    connection._peer_cid_available = [restore_connection_id(cid) for cid in snapshot.peer_cids]
    connection._peer_cid_sequence_numbers = numbers_in(snapshot.peer_sequences)
    connection._peer_retire_prior_to = snapshot.peer_retire_prior_to
    connection._retire_connection_ids = list(snapshot.retiring)

    if snapshot.server_address is not None:
        connection.server_address = snapshot.server_address.value
    if snapshot.client_address is not None:
        connection._client_address = snapshot.client_address.value
    connection._client_cid = snapshot.client_cid
    connection._client_cid_is_new = snapshot.client_cid_is_new
    connection._network_paths = [restore_path(path, now) for path in snapshot.paths]
    restore_recovery(connection, snapshot.recovery, now)
    connection._close_at = now + snapshot.idle_in

    restore_local(connection, snapshot.local)
    restore_remote(connection, snapshot.remote)
    restore_streams(connection, snapshot.streams)
    restore_flight(connection, snapshot.flight, now)
    connection._streams_blocked_pending = snapshot.streams_blocked_pending
    crypto = connection._crypto_streams[_ONE_RTT]
    restore_sender(crypto.sender, snapshot.crypto_sender)
    restore_receiver(crypto.receiver, snapshot.crypto_receiver)
    connection._handshake_done_pending = snapshot.handshake_done_pending
    connection._probe_pending = snapshot.probe_pending
    connection._ping_pending = list(snapshot.pings)
    connection._datagrams_pending = deque(snapshot.datagrams)
    connection._events = restore_events(snapshot.events)
    _restore_server_side(connection, snapshot, now)


def _restore_server_side(connection: Connection, snapshot: Snapshot, now: float) -> None:
    if snapshot.negotiated is not None:
        connection.negotiated = MigrationProtocol(snapshot.negotiated)
    connection.knows_withdrawals = snapshot.knows_withdrawals
    options, state = connection._options, snapshot.migration
    if isinstance(options, ServerMigration):
        family = 4 if state is None else state.family
        connection._server = ServerSide(connection, options, connection.negotiated, family)
        if state is not None:
            restore_migration(connection._server, state, now)
