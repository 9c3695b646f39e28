"""The server's side of the migration as a record, and back."""

from __future__ import annotations

from collections import deque

from quicferry.protocol import (
    FrameType,
    MigrationAddress,
    MigrationFrame,
    MigrationProtocol,
    ServerMigrationFrame,
    decode_frame,
    encode_body,
)
from quicferry.protocol.server import ServerProgress, State

from ..connection import Connection
from ..paths.server_side import ServerSide
from .records import FrameState, MigrationState


def capture_migration(connection: Connection, now: float) -> MigrationState | None:
    """Return the state of the server's side; None where server migration is off."""
    side = connection._server
    if side is None:
        return None
    progress = side.machine.export()
    announcement, withdrawal = progress.announcement, progress.withdrawal
    switched_to = progress.switched_to
    return MigrationState(
        state=progress.state.name,
        protocol=None if progress.protocol is None else int(progress.protocol),
        family=progress.family,
        pool=tuple(address.encode() for address in progress.pool),
        pool_unacknowledged=tuple(
            address.encode() for address in progress.pool if address in progress.pool_unacknowledged
        ),
        announcement=None if announcement is None else encode_body(announcement),
        is_announcement_acknowledged=progress.is_announcement_acknowledged,
        withdrawal=None if withdrawal is None else encode_body(withdrawal),
        has_connection_ids=progress.has_connection_ids,
        switched_to=None if switched_to is None else MigrationAddress.of(switched_to).encode(),
        is_migrated_acknowledged=progress.is_migrated_acknowledged,
        frames=tuple(FrameState(int(f.type), encode_body(f)) for f in side._to_send),
        must_be_heard=side._must_be_heard,
        retire_later=tuple(side._retire_later),
        delivered=tuple(
            cid.sequence_number
            for cid in connection._host_cids
            if cid.sequence_number in side._delivered
        ),
        call_in=None if side._call_at is None else side._call_at - now,
        calls=min(side._calls, 255),
        is_heard=side._is_heard,
        newest_before_switch=side._newest_before_switch,
        awaited=tuple(connection._loss.awaited),
        is_timeout_quick=connection._loss.quick_timeout is not None,
    )


def restore_migration(side: ServerSide, state: MigrationState, now: float) -> None:
    """Go on with a migration, or with none."""
    progress = _progress(state)
    side.machine.resume(progress)
    side._to_send = deque(_frame(frame, progress) for frame in state.frames)
    side._must_be_heard = state.must_be_heard
    side._retire_later = list(state.retire_later)
    side._delivered = set(state.delivered)
    side._call_at = None if state.call_in is None else now + state.call_in
    side._calls = state.calls
    side._is_heard = state.is_heard
    side._newest_before_switch = state.newest_before_switch
    for number in state.awaited:
        side.path_response_written(number)
    if state.is_timeout_quick:
        side._connection._loss.quick_timeout = side._options.probe_interval


def _progress(state: MigrationState) -> ServerProgress:
    switched_to = None
    if state.switched_to is not None:
        switched_to = MigrationAddress.decode(state.switched_to).for_family(state.family)
    return ServerProgress(
        state=State[state.state],
        protocol=None if state.protocol is None else MigrationProtocol(state.protocol),
        family=state.family,
        pool=tuple(map(MigrationAddress.decode, state.pool)),
        pool_unacknowledged=frozenset(map(MigrationAddress.decode, state.pool_unacknowledged)),
        announcement=None if state.announcement is None else _announcement(state.announcement),
        is_announcement_acknowledged=state.is_announcement_acknowledged,
        withdrawal=None if state.withdrawal is None else _announcement(state.withdrawal),
        has_connection_ids=state.has_connection_ids,
        switched_to=switched_to,
        is_migrated_acknowledged=state.is_migrated_acknowledged,
    )


def _announcement(body: bytes) -> ServerMigrationFrame:
    frame = decode_frame(FrameType.SERVER_MIGRATION, body)
    assert isinstance(frame, ServerMigrationFrame)
    return frame


def _frame(state: FrameState, progress: ServerProgress) -> MigrationFrame:
    frame = decode_frame(state.type, state.body)
    # The machine knows what it has said by identity.
    known = (progress.withdrawal, progress.announcement)
    return next((each for each in known if each is not None and each == frame), frame)
