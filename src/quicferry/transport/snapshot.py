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
from functools import partial

from aioquic import tls
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnectionState
from aioquic.quic.packet import QuicErrorCode, QuicFrameType

from quicferry.protocol import MigrationProtocol, ServerMigration

from .connection import Connection
from .http3_state import Http3State
from .recovery import MigratingRecovery
from .seal import RESERVED_NUMBERS, Seal, SealState
from .server_side import ServerSide
from .snapshot_events import CARRIED_EVENTS, capture_events, restore_events
from .snapshot_flight import (
    capture_flight,
    postpone_flight,
    restore_flight,
    separate_flight,
)
from .snapshot_format import SnapshotError, decode, encode, prepare
from .snapshot_handshake import begin_after_handshake
from .snapshot_migration import capture_migration, restore_migration
from .snapshot_parts import (
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
from .snapshot_records import Snapshot
from .snapshot_streams import (
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
    connection._seal.state = SealState.FROZEN
    connection._seal.silent_since = now
    return data


def resume_after_freeze(connection: Connection, *, now: float) -> None:
    """Let a frozen connection go on, because its copy never will.

    Args:
        connection: The connection.
        now: The current time in seconds.

    Raises:
        SnapshotError: If it is not frozen.
    """
    seal = connection._seal
    _expect(seal, SealState.FROZEN)
    seal.state = SealState.OPEN
    first = connection._packet_number
    connection._packet_number += RESERVED_NUMBERS
    seal.resumed_at = connection._packet_number
    if isinstance(connection._loss, MigratingRecovery):
        connection._loss.never_sent = range(first, first + RESERVED_NUMBERS)
        connection._loss.on_never_sent = partial(_give_up, connection)
    connection._probe_pending = True  # its acknowledgement allows the next freeze
    connection._pacing_at = None
    _let_time_run(connection, now)
    connection._close_at = now + connection._idle_timeout()


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
    connection._seal.state = SealState.THAWED
    connection._seal.silent_since = now
    connection._seal.first_forbidden = connection._packet_number + RESERVED_NUMBERS
    return connection


def activate(connection: Connection, *, now: float) -> None:
    """Let a thawed connection live, until its reserved packet numbers are used up.

    Collect events, datagrams and the timer then.

    Args:
        connection: The connection.
        now: The current time in seconds.

    Raises:
        SnapshotError: If it is not one that was thawed and is not active yet.
    """
    _expect(connection._seal, SealState.THAWED)
    connection._seal.state = SealState.PROVISIONAL
    _let_time_run(connection, now)


def commit(connection: Connection) -> None:
    """Tell an active copy that its source is gone for good; send what was held back then.

    Raises:
        SnapshotError: If it is not an active copy.
    """
    _expect(connection._seal, SealState.PROVISIONAL)
    connection._seal.state = SealState.OPEN
    connection._seal.first_forbidden = None


def _give_up(connection: Connection) -> None:
    """Close a connection whose client has dealt with the copy: it knows what this side does not."""
    connection.close(
        error_code=QuicErrorCode.INTERNAL_ERROR,
        frame_type=QuicFrameType.ACK,
        reason_phrase="the connection has lived on another host, which is gone",
    )


def _expect(seal: Seal, state: SealState) -> None:
    if seal.state is not state:
        raise SnapshotError(f"the connection is {seal.state.value}, not {state.value}")


def _let_time_run(connection: Connection, now: float) -> None:
    """Let a connection go on that was silent: what was due in 0.2 s then is due in 0.2 s."""
    pause = now - connection._seal.silent_since
    assert connection._close_at is not None, "the idle timer runs from the first datagram on"
    connection._close_at += pause
    postpone_flight(connection, pause, now)
    for path in connection._network_paths:
        if path.validation_deadline is not None:
            path.validation_deadline += pause
    if connection._server is not None:
        connection._server.postpone(pause)


def _obstacle(connection: Connection) -> str | None:
    seal = connection._seal
    if connection._is_client:
        return "it is a client's, and only servers move"
    if seal.state is SealState.PROVISIONAL:
        return "it is a copy whose source may come back; commit it first"
    if seal.state is not SealState.OPEN:
        return f"it is {seal.state.value} already"
    if not connection._handshake_confirmed:
        return "its handshake is not confirmed; close it, or wait"
    if connection._state is not QuicConnectionState.CONNECTED or connection._close_pending:
        return "it is being closed"
    if seal.resumed_at > connection._spaces[_ONE_RTT].largest_acked_packet:
        return "the client has not been heard of since it was resumed; try again in a round trip"
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
    options, state = connection._options, snapshot.migration
    if isinstance(options, ServerMigration):
        family = 4 if state is None else state.family
        connection._server = ServerSide(connection, options, connection.negotiated, family)
        if state is not None:
            restore_migration(connection._server, state, now)
