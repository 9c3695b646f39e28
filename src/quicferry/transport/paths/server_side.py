"""The server's machine at work on a connection."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.tls import Epoch

from quicferry.protocol import (
    MigrationAddress,
    MigrationFrame,
    MigrationProtocol,
    ServerMachine,
    ServerMigratedFrame,
    ServerMigration,
    encode_body,
)
from quicferry.protocol.server import (
    Action,
    Cancel,
    Complete,
    Emit,
    Send,
    SendMigrated,
    State,
    SwitchPath,
)

from ..addresses import NetworkAddress, address_from_network
from ..qlog import log_frame_sent

if TYPE_CHECKING:
    from ..connection import Connection

_SYMMETRIC = MigrationProtocol.SYMMETRIC | MigrationProtocol.SYNCHRONIZED_SYMMETRIC
# As many challenges as a client sends in a second, which is a long time for a round trip
_AWAITED_RESPONSES = 64
# Bytes of a packet that challenges the client's new address, and says that the server has moved
_WORD = 45
# Seconds after the network switch in which a client should have been heard of, and at most between
# two calls
_CALL_AFTER = 5.0


class ServerSide:
    """Server migration on a server's connection.

    Args:
        connection: The connection, whose handshake has just finished.
        options: The server's choices.
        negotiated: What was negotiated; None where the client has server migration switched off.
        family: 4 or 6, the address family in use.
    """

    def __init__(
        self,
        connection: Connection,
        options: ServerMigration,
        negotiated: MigrationProtocol | None,
        family: int,
    ) -> None:
        self.machine = ServerMachine(
            options, negotiated, family, can_withdraw=connection.knows_withdrawals
        )
        self._connection = connection
        self._options = options
        self._challenge_again_at: float | None = None
        self._challenges = 0
        self._has_challenged = False
        self._to_send: deque[MigrationFrame] = deque()
        self._must_be_heard = False
        self._retire_later: list[int] = []
        self._delivered: set[int] = set()
        self._waits_for_connection_id = False
        self._call_at: float | None = None
        self._calls = 0
        self._is_heard = False
        self._newest_before_switch = -1

    @property
    def timer(self) -> float | None:
        """When `handle_timer` has to be called, or None."""
        supply = self._connection.peer_connection_ids
        is_validated = self._connection._network_paths[0].is_validated
        times = (
            self._call_at,
            supply.given_up_at if self._waits_for_connection_id else None,
            self._challenge_again_at if self.is_under_way and not is_validated else None,
        )
        return min((at for at in times if at is not None), default=None)

    @property
    def is_under_way(self) -> bool:
        """Whether a migration has been announced, or switched, and is not over."""
        return self.machine.state is not State.IDLE

    # Inputs

    def handle_timer(self, now: float) -> None:
        """Call the client until the migration is complete.

        A client that has nothing to send would not find out that the server has moved, and the
        server could not be moved again before it does. One that has come may be unable to go on:
        until its path is validated it may only send three times what it gets (RFC 9000 8).
        """
        if self._call_at is not None and now >= self._call_at:
            self._connection._probe_pending = True
            self._call_again(now)
            self._challenge_again_at = now
        again_at = self._challenge_again_at
        if self.is_under_way and again_at is not None and now >= again_at:
            # The answer is not sent again if it is lost, so it is asked for again (RFC 9000 8.2.1).
            self._challenge_again_at = None
            self._connection._network_paths[0].local_challenge_sent = False
        self.check_connection_ids(now)

    def client_moved(self) -> None:
        """Take note that the client has another address, which is validated from now on."""
        self._challenges = 0
        self._challenge_again_at = None

    def postpone(self, pause: float) -> None:
        """Take note that time stood still for so many seconds."""
        if self._call_at is not None:
            self._call_at += pause
        if self._challenge_again_at is not None:
            self._challenge_again_at += pause

    def datagram_received(self, now: float) -> None:
        """Take note of what may have changed by a datagram from the client."""
        if self._call_at is not None and not self._is_heard:
            newest = self._connection._spaces[Epoch.ONE_RTT].largest_received_packet
            if newest > self._newest_before_switch:
                self._is_heard = True
                self._call_again(now)
        self.check_connection_ids(now)

    def _call_again(self, now: float) -> None:
        delay = _CALL_AFTER
        if self._is_heard:
            timeout = self._connection._loss.get_probe_timeout()
            delay = min(delay, timeout * 2**self._calls)
            self._calls += 1
        self._call_at = now + delay

    def handshake_finished(self) -> None:
        """Start the connection's life."""
        current = address_from_network(self._connection.server_address)
        self._run(self.machine.handshake_finished(current))

    def imminent(
        self, protocol: MigrationProtocol, address: MigrationAddress | None, now: float
    ) -> None:
        """Prepare for a migration; raises MigrationError if it is not possible."""
        current = address_from_network(self._connection.server_address)
        # What was there for the last migration need not be there for this one.
        self._run(self.machine.connection_ids_available(for_both=False))
        self._run(self.machine.imminent(protocol, address, current))
        self.check_connection_ids(now)

    def connection_id_delivered(self, sequence_number: int) -> None:
        """Take note that the client has one of the connection IDs that it was sent."""
        kept = {cid.sequence_number for cid in self._connection._host_cids}
        self._delivered = (self._delivered | {sequence_number}) & kept

    def check_connection_ids(self, now: float) -> None:
        """Get ready, where what was missing is a connection ID for the new path.

        A client that gives no more does not keep the server from moving: RFC 9000 9.5 is for what
        is available, and the one in use works at the new address as well. With the symmetric
        protocols there must also be something that may be said from there: see `held_back`.
        """
        connection = self._connection
        connection.peer_connection_ids.look(now)
        self._waits_for_connection_id = False
        if self.machine.state is State.PREPARING:
            theirs = bool(connection._peer_cid_available) or not connection._peer_cid.cid
            theirs = theirs or connection.peer_connection_ids.have_run_out(now)
            self._waits_for_connection_id = not theirs
            ours = not connection.host_cid or any(
                cid.sequence_number in self._delivered and cid.cid != connection.host_cid
                for cid in connection._host_cids
            )
            available = theirs and ours and self._can_speak_first
            self._run(self.machine.connection_ids_available(for_both=available))

    def abort(self) -> None:
        """Give up a migration that has not been switched; raises MigrationError after it."""
        self._run(self.machine.abort(address_from_network(self._connection.server_address)))

    def network_switch(self, address: NetworkAddress, now: float) -> None:
        """Go on at another local address; raises MigrationError if it is not possible."""
        connection = self._connection
        actions = self.machine.network_switch(address_from_network(address))
        connection.server_address = address
        self._run(actions)
        self._newest_before_switch = connection._spaces[Epoch.ONE_RTT].largest_received_packet
        self._calls = 0
        # The symmetric protocols speak first; with the others it is the client's turn.
        self._is_heard = self._must_be_heard
        self._call_again(now)
        # What expired while the server was frozen counts as one timeout.
        loss = connection._loss
        expired = loss.get_loss_detection_time(amplification_limited=False)
        if expired is not None and expired <= now:
            loss.reschedule_data(now=now)
        connection._close_at = now + connection._idle_timeout()
        path = connection._network_paths[0]
        if not path.is_validated:
            # The client has moved too: a challenge from before the switch is answered to nowhere.
            # The limit against amplification may forbid another one, and anything else; then the
            # way back to the address before is all there is (RFC 9000 8.2.4).
            path.local_challenge_sent = False
            self.client_moved()
            timeout = max(loss.get_probe_timeout(), 2 * connection.configuration.initial_rtt)
            path.validation_deadline = now + 3 * timeout

    def path_response_written(self, packet_number: int) -> None:
        """Take note of a PATH_RESPONSE: one of those since the switch completes the migration."""
        awaited = self._connection._loss.awaited
        if self.machine.state is State.SWITCHED and len(awaited) < _AWAITED_RESPONSES:
            awaited[packet_number] = lambda: self._run(self.machine.path_response_acknowledged())

    # Output

    @property
    def held_back(self) -> int:
        """Bytes that may be sent to the client's new address, but are kept for a network switch.

        Until that address is validated it gets three times what has come from there (RFC 9000 8.1).
        With the symmetric protocols a server that has used that up when it moves could not say
        where it is, and be heard of no more. So enough for two words is left, as one may be lost;
        only the first challenge, and the first word, do not wait.
        """
        path, protocol = self._connection._network_paths[0], self.machine.protocol
        if path.is_validated or protocol is None or not protocol & _SYMMETRIC:
            return 0
        if self.machine.state is State.SWITCHED:
            if self._calls > 1:
                return 0
            is_urgent, held_back = self._must_be_heard, _WORD
        else:
            is_urgent, held_back = not path.bytes_sent, 2 * _WORD
        return min(held_back, max(0, self._allowance - _WORD)) if is_urgent else held_back

    @property
    def _can_speak_first(self) -> bool:
        """Whether the server could tell the client now that it has moved, if it is to do so."""
        protocol, path = self.machine.protocol, self._connection._network_paths[0]
        is_silent = protocol is None or not protocol & _SYMMETRIC
        return is_silent or path.is_validated or self._allowance >= 2 * _WORD

    @property
    def _allowance(self) -> int:
        """Bytes that may be sent on the path in use before it is validated."""
        path = self._connection._network_paths[0]
        return int(3 * path.bytes_received - path.bytes_sent)

    def sent(self, now: float) -> None:
        """Take note that what was to be sent was sent."""
        if self._has_challenged:
            self._has_challenged = False
            timeout = self._connection._loss.get_probe_timeout()
            self._challenge_again_at = now + timeout * 2**self._challenges
            self._challenges += 1

    def challenge_written(self, builder: QuicPacketBuilder) -> None:
        """Write what must not be left out of a packet that challenges the client's new address.

        By a challenge alone the client would not learn that the server has moved: the packet would
        be a probing one (RFC 9000 9.1). And the limit against amplification (RFC 9000 8.1) may not
        permit another packet before the client has answered, to the right address.
        """
        self._has_challenged = True
        if self._must_be_heard:
            self._write(builder, ServerMigratedFrame())
            self._must_be_heard = False

    def write_frames(self, builder: QuicPacketBuilder) -> None:
        """Write what belongs into the next packet."""
        while self._to_send:
            self._write(builder, self._to_send[0])
            self._to_send.popleft()
        if self._must_be_heard:
            if not self._connection.has_data_to_send():
                self._write(builder, ServerMigratedFrame())
            # Three times the size of this is what the client may send before its path is validated.
            builder._datagram_needs_padding = True
            self._must_be_heard = False

    def _write(self, builder: QuicPacketBuilder, frame: MigrationFrame) -> None:
        body = encode_body(frame)
        buffer = builder.start_frame(
            frame.type,
            capacity=1 + len(body),
            handler=self._frame_delivered,
            handler_args=(frame,),
        )
        buffer.push_bytes(body)
        log_frame_sent(builder, self._connection._quic_logger, frame)

    def _frame_delivered(self, delivery: QuicDeliveryState, frame: MigrationFrame) -> None:
        if delivery is QuicDeliveryState.ACKED:
            self._run(self.machine.frame_acknowledged(frame))
        else:
            self._run(self.machine.frame_lost(frame))

    # Actions

    def _run(self, actions: list[Action]) -> None:
        connection = self._connection
        for action in actions:
            match action:
                case Emit(event):
                    connection.emit(event)
                case Send(frame):
                    if frame not in self._to_send:
                        self._to_send.append(frame)
                case Cancel(frame):
                    self._to_send = deque(each for each in self._to_send if each is not frame)
                case SendMigrated():
                    self._must_be_heard = True
                case SwitchPath():
                    for path in connection._network_paths:
                        path.remote_challenges.clear()  # answered only where they came (8.2.2)
                    self._change_connection_ids()
                    connection._loss.leave_path()
                    connection._loss.quick_timeout = self._options.probe_interval
                case Complete():
                    self._call_at = None
                    connection._loss.quick_timeout = None
                    connection._loss.awaited.clear()
                    connection._retire_connection_ids += self._retire_later
                    self._retire_later.clear()

    def _change_connection_ids(self) -> None:
        """Take others: every one in use was used from the old address (RFC 9000 9.5)."""
        connection = self._connection
        connection.change_connection_id()
        for path in connection._network_paths:
            if path.peer_cid is not None:
                connection._retire_peer_cid(path.peer_cid)
                path.peer_cid = None
        # Nothing is due to the client at the switch (RETIRE_CONNECTION_ID would be).
        self._retire_later += connection._retire_connection_ids
        connection._retire_connection_ids.clear()
