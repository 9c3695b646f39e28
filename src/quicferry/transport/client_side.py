"""The client's machine at work on a connection: its inputs, its actions, and their timers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from aioquic.quic.connection import QuicNetworkPath, stream_is_unidirectional
from aioquic.quic.packet import QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder, QuicPacketBuilderStop
from aioquic.quic.stream import QuicStream
from aioquic.tls import Epoch

from quicferry.protocol import (
    Address,
    ClientMachine,
    ClientMigration,
    MigrationFrame,
    PeerError,
    ServerMigratedFrame,
)
from quicferry.protocol.client import (
    Action,
    Challenge,
    Commit,
    Emit,
    Forget,
    Move,
    Redirect,
    ReturnHome,
    SetProbeTimer,
)
from quicferry.protocol.suite import MigrationProtocol

from .addresses import NetworkAddress, address_from_network
from .client_paths import ClientPaths, address_of
from .probe import ProbeBuilder, challenge_size

if TYPE_CHECKING:
    from .connection import Connection

# RFC 9000 8.2.4: three times the probe timeout of a path whose RTT is unknown (RFC 9002 6.2.2)
_VALIDATION_TIMEOUT = 3.0
# What is sent to an address before it answers: at first enough for a request, then single
# datagrams, then just enough for a PING with a little data.
_FIRST_PROBE_DATAGRAMS = 3
_FULL_PROBES = 5
_SMALL_PROBE = 180


class ClientSide:
    """Server migration on a client's connection.

    Args:
        connection: The connection, whose handshake has come to the transport parameters.
        options: The client's choices.
        negotiated: What was negotiated, possibly nothing.
        home: The server's address.
    """

    def __init__(
        self,
        connection: Connection,
        options: ClientMigration,
        negotiated: MigrationProtocol,
        home: Address,
    ) -> None:
        self.machine = ClientMachine(
            options, negotiated, home, knows_withdrawals=connection.knows_withdrawals
        )
        self._probe_at: float | None = None
        self._challenge_again_at: float | None = None
        self._connection = connection
        self._paths = ClientPaths(connection, self.machine.may_probe)
        self._challenges: list[QuicNetworkPath] = []
        self._answered_with = b""
        self._silent_since = -1
        self._heard_at: float | None = None
        self._challenge_path_in_use = False
        self._challenge_is_full = True

    @property
    def timer(self) -> float | None:
        """When `handle_timer` has to be called, or None."""
        times = (
            self._probe_at,
            self._challenge_again_at,
            self._silent_at(),
            self._ask_home_at(),
        )
        return min((at for at in times if at is not None), default=None)

    # Inputs

    def is_copied(self, source: NetworkAddress, connection_id: bytes) -> bool:
        """Return whether a datagram must be dropped unread.

        Args:
            source: Where it comes from.
            connection_id: Its destination connection ID, if it is a 1-RTT packet.
        """
        return source != self._paths.in_use.addr and self._paths.is_copied(source, connection_id)

    def expects(self, source: NetworkAddress) -> bool:
        """Return whether a datagram from an address without a path may be looked at."""
        address = address_from_network(source)
        return address is not None and self.machine.expects(address)

    def frame_received(
        self,
        frame: MigrationFrame,
        *,
        source: NetworkAddress,
        connection_id: bytes,
        packet_number: int,
        is_newest: bool,
        now: float,
    ) -> None:
        """Handle a migration frame."""
        address = address_from_network(source)
        reachable = self._reachable(source, connection_id) is not None
        if address is None or (isinstance(frame, ServerMigratedFrame) and not reachable):
            return  # what the other frames say does not depend on where they come from
        try:
            actions = self.machine.frame_received(
                frame, source=address, packet_number=packet_number, is_newest=is_newest
            )
        except PeerError:
            # The packet may have brought the connection home before its frame was looked at.
            self._run(self.machine.take_actions(), now)
            raise
        self._run(actions, now)

    def heard(self, now: float) -> None:
        """Take note that the server has sent something that wants an acknowledgement."""
        self._heard_at = now

    def packet_received(
        self, source: NetworkAddress, connection_id: bytes, packet_number: int, now: float
    ) -> None:
        """Handle a non-probing packet that is the highest-numbered one so far."""
        address = self._reachable(source, connection_id)
        if address is not None:
            self._run(self.machine.packet_received(address, packet_number), now)
            if source == self._paths.home.addr == self._paths.in_use.addr:
                self._paths.retire_spent()

    def timeout(self, now: float) -> None:
        """Handle a probe timeout, or the application's wish to look for the server."""
        self._silent_since = self._connection._packet_number
        self._run(self.machine.timeout(), now)

    def handle_timer(self, now: float) -> None:
        """Send what is due: the next probe, or the challenge on the path in use again."""
        if self._probe_at is not None and now >= self._probe_at:
            self._probe_at = None
            self._run(self.machine.probe_due(), now)
        if self._challenge_again_at is not None and now >= self._challenge_again_at:
            path = self._paths.in_use
            if not path.is_validated and self.machine.may_probe(address_of(path)):
                self._allow_probe(path)
            self._validate_path_in_use(now)
        silent_at = self._silent_at()
        if silent_at is not None and now >= silent_at:
            self.timeout(now)
        ask_home_at = self._ask_home_at()
        if ask_home_at is not None and now >= ask_home_at:
            self._heard_at = None
            self._connection._probe_pending = True

    def validation_failed(self, now: float) -> None:
        """Handle that the path in use could not be validated in time."""
        self._run(self.machine.validation_failed(), now)

    def path_answered(
        self,
        data: bytes,
        *,
        source: NetworkAddress,
        connection_id: bytes,
        packet_number: int,
        now: float,
    ) -> bool:
        """Handle a PATH_RESPONSE; return False where it is none of ours."""
        self._answered_with = connection_id
        path = self._paths.challenged_by(data)
        if path is None:
            return False
        if source != path.addr and path is not self._paths.in_use:
            return True
        path.is_validated = True
        path.validation_deadline = None
        path.local_challenges.clear()
        if path is self._paths.in_use:
            self._stop_validating()
            if not self._challenge_is_full:
                # The limit against amplification was in the way (RFC 9000 8.2.1).
                self._validate_path_in_use(now)
        if self._paths.is_reachable(path.addr):
            self._run(
                self.machine.path_answered(
                    address_of(path), address_from_network(source), packet_number
                ),
                now,
            )
        return True

    def follow_preferred_address(self) -> None:
        """Take note where aioquic itself has moved to the server's preferred address."""
        self.machine.home = self._paths.follow_preferred_address() or self.machine.home

    def change_connection_ids(self) -> None:
        """Replace the connection IDs of paths not in use: the client's own address has changed."""
        self._paths.change_connection_ids()

    def challenge_lost(self, path: QuicNetworkPath) -> bool:
        """Handle a lost PATH_CHALLENGE on the path in use; return False where that is not ours."""
        if path is self._paths.in_use and path is not self._paths.home:
            self._challenge_path_in_use = not self._is_looking
            return True
        return False

    def _silent_at(self) -> float | None:
        """Return when the oldest packet in flight has been without an answer for a probe timeout.

        RFC 9002 starts the timeout again with every packet sent, so a client that sends little and
        often would never get one from a server that is gone.
        """
        loss = self._connection._loss
        if not self.machine.heeds_timeouts or loss._pto_count:
            return None
        for number, packet in self._connection._spaces[Epoch.ONE_RTT].sent_packets.items():
            if packet.in_flight and packet.is_ack_eliciting and number > self._silent_since:
                assert packet.sent_time is not None
                return packet.sent_time + loss.get_probe_timeout()
        return None

    def _ask_home_at(self) -> float | None:
        """Return when to send a PING because the server has stopped in the middle of a stream.

        A client that only listens has nothing in flight, and so no timeouts. Behind a NAT it would
        wait for ever for a server that has moved and cannot reach it.
        """
        connection = self._connection
        if (
            self._heard_at is None
            or not self.machine.heeds_timeouts
            or connection._spaces[Epoch.ONE_RTT].ack_eliciting_in_flight
            or all(stream.receiver.is_finished for stream in self._two_way_streams())
        ):
            return None
        return self._heard_at + connection._loss.get_probe_timeout()

    def _two_way_streams(self) -> Iterator[QuicStream]:
        for stream_id, stream in self._connection._streams.items():
            if not stream_is_unidirectional(stream_id):
                yield stream

    # Output

    def write_frames(self, builder: QuicPacketBuilder) -> None:
        """Write what belongs into the next packet on the path in use."""
        if self._challenge_path_in_use:
            path = self._paths.in_use
            self._challenge_is_full = path.can_send(self._connection._max_datagram_size)
            self._connection._write_path_challenge_frame(builder=builder, network_path=path)
            self._challenge_path_in_use = False

    def challenges_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """Return datagrams that only ask for the server, elsewhere than on the path in use.

        They are as small as they can be: nothing has come from these addresses, so the limit
        against amplification does not permit to expand them (RFC 9000 8.2.1). The path that
        answers is challenged again with a full datagram once it is in use.
        """
        connection = self._connection
        assert connection._version is not None
        paths, self._challenges = self._challenges, []
        datagrams: list[tuple[bytes, NetworkAddress]] = []
        for path in paths:
            if path is self._paths.in_use or path.peer_cid is None:
                continue
            builder = ProbeBuilder(
                host_cid=connection.host_cid,
                is_client=True,
                max_datagram_size=connection._max_datagram_size,
                packet_number=connection._packet_number,
                peer_cid=path.peer_cid.cid,
                quic_logger=connection._quic_logger,
                version=connection._version,
            )
            builder.max_total_bytes = challenge_size(path.peer_cid.cid)
            builder.start_packet(QuicPacketType.ONE_RTT, connection._cryptos[Epoch.ONE_RTT])
            try:
                connection._write_path_challenge_frame(builder=builder, network_path=path)
            except QuicPacketBuilderStop:
                raise AssertionError("a challenge fits into the size computed for it") from None
            challenge = connection._flush_builder(
                builder=builder, network_path=path, peer_cid=path.peer_cid.cid, now=now
            )
            # They are not to use up what the server's first word from there permits.
            path.bytes_sent -= sum(len(data) for data, _ in challenge)
            datagrams += challenge
        return datagrams

    # Actions

    @property
    def _is_looking(self) -> bool:
        """Whether the path in use is only a guess."""
        return address_of(self._paths.in_use) != self.machine.server_address

    def _run(self, actions: list[Action], now: float) -> None:
        for action in actions:
            match action:
                case Emit(event):
                    self._connection.emit(event)
                case SetProbeTimer(delay) if delay is not None:
                    self._probe_at = now + delay
                case SetProbeTimer():
                    self._probe_at = None
                    self._challenges.clear()
                case Challenge(addresses):
                    paths = [self._paths.to(address) for address in addresses]
                    self._challenges += [path for path in paths if path is not None]
                case Redirect(address):
                    self._redirect(address, now)
                case Move(address):
                    self._move(address, now)
                case ReturnHome():
                    self._return_home(now)
                case Forget():
                    self._paths.forget_candidates()
                case Commit():
                    self._paths.settle(self._answered_with, now)

    def _redirect(self, address: Address, now: float) -> None:
        path = self._paths.to(address)
        if path is None:
            return
        self._paths.use(path, now)
        if path is not self._paths.home:
            # What is lost before the server is there says nothing about congestion.
            self._connection._loss.answered_at = math.inf
            self._allow_probe(path)
        self._connection._loss.reschedule_data(now=now)

    def _allow_probe(self, path: QuicNetworkPath) -> None:
        # The limit is three times what was received (RFC 9000 8): grant it by the other end.
        probes = self._paths.probes[path.addr] = self._paths.probes[path.addr] + 1
        datagram_size = self._connection._max_datagram_size
        if probes == 1:
            size = _FIRST_PROBE_DATAGRAMS * datagram_size
        else:
            size = datagram_size if probes <= _FULL_PROBES else _SMALL_PROBE
        path.bytes_received = max(path.bytes_received, -(-(path.bytes_sent + size) // 3))

    def _move(self, address: Address, now: float) -> None:
        path = self._paths.to(address)
        assert path is not None, "the source of a packet was checked to be reachable"
        if path is self._paths.in_use:
            self._connection._loss.answered_at = now
        self._paths.use(path, now)
        if self.machine.may_probe(address) and not self._paths.probes[path.addr]:
            # Only challenges have been sent there so far: now it is time for what a probe has.
            self._allow_probe(path)
        # An answer from home only counts if it was asked after the server seemed to have moved.
        self._paths.home.local_challenges.clear()
        self._validate_path_in_use(now)
        if self._connection._spaces[Epoch.ONE_RTT].ack_eliciting_in_flight:
            self._connection._loss.reschedule_data(now=now)
        if not path.is_validated:
            path.validation_deadline = now + _VALIDATION_TIMEOUT

    def _validate_path_in_use(self, now: float) -> None:
        # Again until it is answered: the answer is not sent again if it is lost (RFC 9000 8.2.1).
        self._challenge_path_in_use = True
        self._challenge_again_at = now + self._connection._loss.get_probe_timeout()

    def _stop_validating(self) -> None:
        self._challenge_path_in_use = False
        self._challenge_again_at = None

    def _return_home(self, now: float) -> None:
        self._stop_validating()
        self._paths.return_home(now)

    def _reachable(self, source: NetworkAddress, connection_id: bytes) -> Address | None:
        """Return where a packet comes from, if the connection could move there."""
        if self._paths.is_copied(source, connection_id) or not self._paths.is_reachable(source):
            return None
        return address_from_network(source)
