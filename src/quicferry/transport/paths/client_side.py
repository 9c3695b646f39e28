"""The client's machine at work on a connection: its inputs, its actions, and their timers."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from aioquic.quic.connection import (
    NEW_CONNECTION_ID_FRAME_CAPACITY,
    QuicNetworkPath,
    stream_is_unidirectional,
)
from aioquic.quic.packet import QuicFrameType, QuicPacketType
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
    AskHome,
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

from ..addresses import NetworkAddress, address_from_network, read_address
from .asking import Pace, named_budget, unnamed_budget
from .client_paths import MAX_UNNAMED, ClientPaths, address_of
from .connection_ids import PeerConnectionIds
from .probe import ProbeBuilder, probe_size

if TYPE_CHECKING:
    from ..connection import Connection

# RFC 9000 8.2.4: three times the probe timeout of a path whose RTT is unknown (RFC 9002 6.2.2)
_VALIDATION_TIMEOUT = 3.0
# What is sent to an address before it answers: at first enough for a request, then single
# datagrams, then just enough for a PING with a little data.
_FIRST_PROBE_DATAGRAMS = 3
_FULL_PROBES = 5
_SMALL_PROBE = 180
# Bytes of a challenge and a connection ID to answer it with
_CHALLENGE_AND_ID = 1 + 8 + NEW_CONNECTION_ID_FRAME_CAPACITY
_PATH_RESPONSE = bytes([QuicFrameType.PATH_RESPONSE])
_AWAITED_ACKNOWLEDGEMENTS = 64


class ClientSide:
    """Server migration on a client's connection.

    Args:
        connection: The connection, whose handshake has come to the transport parameters.
        options: The client's choices.
        negotiated: What was negotiated, possibly nothing.
        home: The server's address.
        connection_ids: The supply of the server's connection IDs.
    """

    def __init__(
        self,
        connection: Connection,
        options: ClientMigration,
        negotiated: MigrationProtocol,
        home: Address,
        connection_ids: PeerConnectionIds,
    ) -> None:
        self.machine = ClientMachine(
            options, negotiated, home, knows_withdrawals=connection.knows_withdrawals
        )
        self._probe_at: float | None = None
        self._challenge_again_at: float | None = None
        self._connection = connection
        self._paths = ClientPaths(connection, self.machine.may_probe, connection_ids)
        self._pace = Pace(connection)
        self._budget = named_budget()
        self._budget_of_unnamed = unnamed_budget()
        self._challenges: list[QuicNetworkPath] = []
        self._calls: list[QuicNetworkPath] = []
        self._next_in_turn = 0
        self._must_ask_home = False
        self._asked_home_by = -1
        self._asks_of_unnamed: deque[float] = deque(maxlen=MAX_UNNAMED)
        self._answered_with = b""
        self._answer: int | None = None
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

    @property
    def home(self) -> NetworkAddress:
        """Where the server was last known to be."""
        return self._paths.home.addr

    @property
    def is_settled(self) -> bool:
        """Whether the server is at home, and cannot be anywhere else as far as it has told."""
        return self._paths.home is self._paths.in_use and self.machine.is_settled

    # Inputs

    def is_copied(self, source: NetworkAddress, connection_id: bytes) -> bool:
        """Return whether a datagram must not be processed: it may be a copy of one from home.

        Args:
            source: Where it comes from.
            connection_id: Its destination connection ID, if it is a 1-RTT packet.
        """
        is_in_use = source == self._paths.in_use.addr and not self._is_looking
        return not is_in_use and self._paths.is_copied(source, connection_id)

    def overheard(self, data: bytes, source: NetworkAddress, now: float) -> bool:
        """Handle a datagram that may be a copy: is the server where it comes from?

        Some servers go on with their connection ID when they move. What tells them from somebody
        who copies packets is that they answer there. What else the packet says is not looked at:
        the genuine one may be yet to come.

        Args:
            data: The datagram, which begins with a 1-RTT packet.
            source: Where it comes from.
            now: The current time in seconds.

        Returns:
            Whether it is such an answer, and has to be processed.
        """
        challenges = self._paths.challenges_of(source)
        address = read_address(source)
        if address is None or not self.machine.may_move_to(address):
            return False
        may_ask = self._may_ask(address, source, now)
        packet = self._connection.authenticate(data) if challenges or may_ask else None
        if packet is None:
            return False
        self._pace.heard(source)
        number, payload = packet
        if any(_PATH_RESPONSE + challenge in payload for challenge in challenges):
            return True
        if may_ask and number > self._connection.newest_packet:
            path = self._paths.overhear(address, len(data), now)
            if path is not None:
                self._challenges.append(path)
                if not self.machine.may_probe(address):
                    self._asks_of_unnamed.append(now)
                    self._must_ask_home = True  # RFC 9000 9.3.3
        return False

    def _may_ask(self, address: Address, source: NetworkAddress, now: float) -> bool:
        # Anybody can copy any number of packets, and send them from any number of addresses.
        if not self._pace.is_due(source, now, is_overheard=True):
            return False
        if self.machine.may_probe(address):
            return True
        asks = self._asks_of_unnamed
        timeout = self._connection._loss.get_probe_timeout()
        return len(asks) < MAX_UNNAMED or now >= asks[0] + timeout

    def is_known(self, source: NetworkAddress) -> bool:
        """Return whether there is a path to an address to be kept."""
        return source in self._paths.probes

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
        reachable = self._reachable(source, connection_id, now) is not None
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
        # Nearly all packets are from home, and nobody is looked for elsewhere.
        is_home = source == self._paths.home.addr == self._paths.in_use.addr
        address = (
            address_from_network(source) if is_home else self._reachable(source, connection_id, now)
        )
        if address is not None:
            self._run(self.machine.packet_received(address, packet_number), now)
            if source == self._paths.home.addr == self._paths.in_use.addr:
                self._paths.heard_home(connection_id)
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
                self._allow_probe(path, now, is_heard=True)
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
        self._paths.in_use.validation_deadline = None
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
        self._answer = packet_number
        if source != path.addr and path is not self._paths.in_use:
            return True
        path.is_validated = True
        path.validation_deadline = None
        path.local_challenges.clear()
        self._pace.answered(path.addr)
        self._budget.answered(path.addr)
        if path is self._paths.in_use:
            if path is self._paths.home:
                self._paths.answered_at_home(connection_id)
            self._stop_validating()
            if not self._challenge_is_full:
                # The limit against amplification was in the way (RFC 9000 8.2.1).
                self._validate_path_in_use(now)
        if self._paths.is_reachable(path.addr, now):
            self._run(
                self.machine.path_answered(
                    address_of(path),
                    address_from_network(source),
                    packet_number,
                    is_overheard=self._paths.is_overheard(path),
                ),
                now,
            )
        return True

    def _home_answered(self) -> None:
        # A server that has moved may still hear what is sent to its former address.
        if self._connection._received_from == self._paths.home.addr:
            self._paths.home_answered()

    def acknowledgement_written(self, packet_number: int) -> None:
        """Take note that a packet acknowledges all that was received."""
        awaited = self._connection._loss.awaited
        if self._answer is not None and len(awaited) < _AWAITED_ACKNOWLEDGEMENTS:
            awaited[packet_number] = self._answer_acknowledged

    def _answer_acknowledged(self) -> None:
        self._answer = None

    def acknowledge_answer(self) -> None:
        """Acknowledge the last PATH_RESPONSE until the server is known to have heard of it.

        An acknowledgement that has arrived ends those of lower packet numbers (RFC 9000 13.2.4).
        One of them may have come in late, and what acknowledged it may be lost: the server would
        not learn that its migration is complete.
        """
        if self._answer is not None:
            self._connection._spaces[Epoch.ONE_RTT].ack_queue.add(self._answer, self._answer + 1)

    def drop_stray(self, source: NetworkAddress) -> None:
        """Drop the path to the source of a datagram, if it was forgotten meanwhile."""
        self._paths.drop_stray(source)

    def follow_preferred_address(self) -> None:
        """Take note where aioquic itself has moved to the server's preferred address."""
        self.machine.home = self._paths.follow_preferred_address() or self.machine.home

    def change_connection_ids(self) -> None:
        """Replace the connection IDs of paths not in use: the client's own address has changed."""
        self._paths.change_connection_ids()

    def connection_id_delivered(self, sequence_number: int) -> None:
        """Take note that the server has one of the connection IDs that it was sent."""
        self._pace.connection_id_delivered(sequence_number)

    def challenge_acknowledged(self, path: QuicNetworkPath) -> None:
        """Handle that a datagram with a PATH_CHALLENGE has arrived.

        Home has answered before. Full datagrams arrive there as well, so the answer to this one,
        which may be lost, is not asked for again. To some servers it would be the end of a
        migration that has not begun.
        """
        if path is self._paths.in_use is self._paths.home and self._challenge_is_full:
            self._stop_validating()

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
            provided = self._pace.connection_id_to_provide()
            if provided is not None and builder.remaining_flight_space >= _CHALLENGE_AND_ID:
                self._connection._write_new_connection_id_frame(builder, provided)
            self._connection._write_path_challenge_frame(builder=builder, network_path=path)
            self._challenge_path_in_use = False

    def challenges_to_send(
        self, sent: Sequence[tuple[bytes, NetworkAddress]], now: float
    ) -> list[tuple[bytes, NetworkAddress]]:
        """Return datagrams that only ask for the server, elsewhere than on the path in use.

        They are as small as they can be: nothing has come from these addresses, so the limit
        against amplification does not permit to expand them (RFC 9000 8.2.1). The path that
        answers is challenged again with a full datagram once it is in use.

        Args:
            sent: What is sent on the path in use.
            now: The current time in seconds.
        """
        self._account_for(sent)
        challenges, self._challenges = self._challenges, []
        calls, self._calls = self._calls, []
        datagrams: list[tuple[bytes, NetworkAddress]] = []
        for path in challenges:
            datagrams += self._ask(path, now, self._write_challenge, provides=True)
        for path in calls:
            datagrams += self._ask(path, now, self._write_call)
        if self._must_ask_home:
            self._must_ask_home = False
            home = self._paths.to(address_of(self._paths.home), now)
            if home is not None:
                datagrams += self._probe(home, now, self._write_question_to_home)
        return datagrams

    def _account_for(self, sent: Sequence[tuple[bytes, NetworkAddress]]) -> None:
        """Take note of what is sent on the path in use, where nobody is known to be."""
        path = self._paths.in_use
        if path is self._paths.home or path.is_validated or not sent:
            return
        if self.machine.may_probe(address_of(path)):
            self._budget.spend(path.addr, [len(data) for data, to in sent if to == path.addr])

    def _ask(
        self,
        path: QuicNetworkPath,
        now: float,
        write: Callable[[QuicPacketBuilder, QuicNetworkPath], None],
        *,
        provides: bool = False,
    ) -> list[tuple[bytes, NetworkAddress]]:
        """Return a datagram that asks whether the server is somewhere, if there may be one."""
        is_named = self.machine.may_probe(address_of(path))
        budget = self._budget if is_named else self._budget_of_unnamed
        if not budget.allows(_SMALL_PROBE, now):
            return []
        datagrams = self._probe(path, now, write, provides=provides)
        budget.spend(path.addr, [len(data) for data, _ in datagrams])
        # They are not to use up what the server's first word from there permits.
        path.bytes_sent -= sum(len(data) for data, _ in datagrams)
        return datagrams

    def _probe(
        self,
        path: QuicNetworkPath,
        now: float,
        write: Callable[[QuicPacketBuilder, QuicNetworkPath], None],
        *,
        provides: bool = False,
    ) -> list[tuple[bytes, NetworkAddress]]:
        """Return a datagram with one frame, and perhaps a connection ID for who gets it."""
        connection = self._connection
        cid = path.peer_cid
        if path is self._paths.in_use or (cid is None and self._paths.may_share(now)):
            cid = connection._peer_cid
        if cid is None:
            return []
        assert connection._version is not None
        builder = ProbeBuilder(
            host_cid=connection.host_cid,
            is_client=True,
            max_datagram_size=connection._max_datagram_size,
            packet_number=connection._packet_number,
            peer_cid=cid.cid,
            quic_logger=connection._quic_logger,
            version=connection._version,
        )
        provided = self._pace.connection_id_to_provide() if provides else None
        builder.max_total_bytes = probe_size(cid.cid, provided.cid if provided else None)
        builder.start_packet(QuicPacketType.ONE_RTT, connection._cryptos[Epoch.ONE_RTT])
        try:
            if provided is not None:
                connection._write_new_connection_id_frame(builder, provided)
            write(builder, path)
        except QuicPacketBuilderStop:
            raise AssertionError("a probe fits into the size computed for it") from None
        if write == self._write_challenge:
            heard = self._paths.is_overheard(path)
            self._pace.challenged(path.addr, now, self._paths.probes, is_heard=heard)
        datagrams: list[tuple[bytes, NetworkAddress]] = connection._flush_builder(
            builder=builder, network_path=path, peer_cid=cid.cid, now=now
        )
        return datagrams

    def _write_challenge(self, builder: QuicPacketBuilder, path: QuicNetworkPath) -> None:
        self._connection._write_path_challenge_frame(builder=builder, network_path=path)

    def _write_call(self, builder: QuicPacketBuilder, path: QuicNetworkPath) -> None:
        self._connection._write_ping_frame(builder, comment="probe")

    def _write_question_to_home(self, builder: QuicPacketBuilder, path: QuicNetworkPath) -> None:
        self._connection._write_ping_frame(builder, comment="probe")
        awaited = self._connection._loss.awaited
        awaited.pop(self._asked_home_by, None)
        self._asked_home_by = builder.packet_number
        awaited[self._asked_home_by] = self._home_answered

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
                    self._ask_nobody()
                case Challenge(addresses):
                    self._challenge(addresses, now)
                case AskHome():
                    self._must_ask_home = True
                case Redirect(address):
                    self._redirect(address, now)
                case Move(address):
                    self._move(address, now)
                case ReturnHome():
                    self._return_home(now)
                case Forget():
                    self._ask_nobody()
                    self._paths.forget_candidates()
                case Commit():
                    self._must_ask_home = False
                    self._pace.forget()
                    self._paths.settle(self._answered_with, now)

    def _ask_nobody(self) -> None:
        self._challenges.clear()
        self._calls.clear()

    def _challenge(self, addresses: tuple[Address, ...], now: float) -> None:
        """Ask as many of the addresses as may be asked; the others come first the next time.

        Where it is not time for another challenge it is a PING: it costs the server nothing, and
        what acknowledges it comes from where the server is.
        """
        asked: list[QuicNetworkPath] = []
        first = self._next_in_turn % len(addresses)
        for number in (*range(first, len(addresses)), *range(first)):
            if not self._budget.allows(_SMALL_PROBE, now, packets=len(asked) + 1):
                self._next_in_turn = number
                break
            if not self._is_worth_asking(addresses[number], now):
                continue
            path = self._paths.to(addresses[number], now, asked)
            if path is None:
                if asked:
                    self._next_in_turn = number
                    break
                continue
            asked.append(path)
            is_due = self._pace.is_due(path.addr, now)
            (self._challenges if is_due else self._calls).append(path)

    def _is_worth_asking(self, address: Address, now: float) -> bool:
        """Return whether an address has a connection ID, or it is time for a challenge.

        Another connection ID each time would cost the server as much as a challenge.
        """
        path = self._paths.known(address)
        if path is None or path.peer_cid is not None or path is self._paths.in_use:
            return True
        return self._pace.is_due(path.addr, now) or self._paths.may_share(now)

    def _redirect(self, address: Address, now: float) -> None:
        path = self._paths.to(address, now)
        if path is None:
            return
        self._paths.use(path, now)
        if path is not self._paths.home:
            # What is lost before the server is there says nothing about congestion.
            self._connection._loss.answered_at = math.inf
            self._allow_probe(path, now, is_heard=False)
        self._connection._loss.reschedule_data(now=now)

    def _allow_probe(self, path: QuicNetworkPath, now: float, *, is_heard: bool) -> None:
        # The limit is three times what was received (RFC 9000 8): grant it by the other end. What
        # was not used where nobody is does not add up.
        size = 0
        if self._budget.allows(_SMALL_PROBE, now):
            probes = self._paths.probes[path.addr] = self._paths.probes[path.addr] + 1
            datagram_size = self._connection._max_datagram_size
            if probes > _FULL_PROBES or not self._budget.is_ample(now):
                size = _SMALL_PROBE
            else:
                size = (_FIRST_PROBE_DATAGRAMS if probes == 1 else 1) * datagram_size
        granted = -(-(path.bytes_sent + size) // 3)
        path.bytes_received = max(path.bytes_received, granted) if is_heard else granted

    def _move(self, address: Address, now: float) -> None:
        path = self._paths.to(address, now)
        assert path is not None, "the source of a packet was checked to be reachable"
        if path is self._paths.in_use:
            self._connection._loss.answered_at = now
        self._paths.use(path, now)
        if self.machine.may_probe(address) and not self._paths.probes[path.addr]:
            # Only challenges have been sent there so far: now it is time for what a probe has.
            self._allow_probe(path, now, is_heard=True)
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
        path = self._paths.in_use.addr
        self._pace.challenged(path, now, self._paths.probes, is_heard=True)
        pause: float = self._connection._loss.get_probe_timeout()
        self._challenge_again_at = now + max(pause, self._pace.interval(path))

    def _stop_validating(self) -> None:
        self._challenge_path_in_use = False
        self._challenge_again_at = None

    def _return_home(self, now: float) -> None:
        self._stop_validating()
        self._paths.return_home(now)

    def _reachable(
        self, source: NetworkAddress, connection_id: bytes, now: float
    ) -> Address | None:
        """Return where a packet comes from, if the connection could move there."""
        paths = self._paths
        if paths.is_copied(source, connection_id) or not paths.is_reachable(source, now):
            return None
        return address_from_network(source)
