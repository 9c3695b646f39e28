"""A QUIC connection that carries the server-migration extension.

`Connection` is aioquic's `QuicConnection` with hooks at the few points where the extension
attaches; what happens there is decided by the state machines of `quicferry.protocol` and carried
out by `ClientSide` and `ServerSide`.
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from aioquic import tls
from aioquic._crypto import CryptoError
from aioquic.buffer import UINT_VAR_MAX, Buffer
from aioquic.quic import events as quic_events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    END_STATES,
    EPOCHS,
    QuicConnectionError,
    QuicConnectionId,
    QuicConnectionState,
    QuicNetworkPath,
    QuicReceiveContext,
    QuicTokenHandler,
)
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, is_long_header
from aioquic.quic.packet_builder import (
    QuicDeliveryState,
    QuicPacketBuilder,
    QuicPacketBuilderStop,
)
from aioquic.quic.recovery import QuicPacketSpace

from quicferry.protocol import (
    Address,
    ClientMigration,
    ClientMigrationDetected,
    ConnectionClosed,
    ConnectionErrorCode,
    FrameType,
    HandshakeFinished,
    MigrationAddress,
    MigrationError,
    MigrationErrorCode,
    MigrationEvent,
    MigrationFailed,
    MigrationProtocol,
    PeerError,
    ServerMigration,
    ServerMigrationFrame,
    decode_frame,
    printable,
    refusal,
)
from quicferry.protocol.frames import BODY_SIZES

from .addresses import NetworkAddress, address_from_network, read_address
from .contract import FRAME_HANDLERS, check_contract
from .key_age import KeyAge
from .negotiation import Negotiation, close_with
from .opening import LONGEST_CLIENT_HANDSHAKE
from .paths.client_side import ClientSide
from .paths.connection_ids import PeerConnectionIds
from .paths.recovery import MigratingRecovery, NumberedWindow, PathEstimate
from .paths.server_side import ServerSide
from .qlog import encode_frame, log_event
from .seal import Seal
from .streams import StreamControl

check_contract()

LONGEST_QUIET = 25.0
"""Seconds of silence that most NATs bear (RFC 9000 10.1.2)."""

_ONE_RTT = tls.Epoch.ONE_RTT
_ONE_RTT_ONLY = EPOCHS("1")
# Bytes of a packet with an acknowledgement, a challenge and a word about the server's move
_CHALLENGE_AND_MORE = 120

_UNCHANGED = nullcontext()

_LONGEST_MESSAGE = 256 * 1024
"""Bytes of a TLS message: a server's certificates are the longest."""

_SMALLEST_RESET = 21
"""Bytes: a smaller datagram is no stateless reset (RFC 9000 10.3)."""


class Connection(Negotiation, StreamControl):
    """A QUIC connection whose server may move.

    It stands wherever aioquic's class stands, with the same constructor, methods and events. What
    the extension has to say is in a queue of its own, `next_migration_event`. With server
    migration off (a plain `QuicConfiguration`, or `server_migration` None), nothing on the wire
    differs from aioquic's class.

    Args:
        configuration: A `Configuration`, or aioquic's own with server migration off.
        original_destination_connection_id: For servers, as in aioquic.
        retry_source_connection_id: For servers, as in aioquic.
        session_ticket_fetcher: As in aioquic.
        session_ticket_handler: As in aioquic.
        token_handler: For clients, as in aioquic.

    Raises:
        ValueError: If the configuration does not fit, as in aioquic, or if its `server_migration`
            is for the other side.

    Attributes:
        stable_id: The connection's name, the same for its whole life, whatever connection IDs it
            uses later.
        negotiated: The protocols that were agreed on; 0 where nothing is in common; None where
            server migration is off for this connection.
        server_address: The local address of a server, where it is known; its endpoint sets it.
        peer_connection_ids: The supply of the peer's connection IDs.
        on_connection_id_sent: Called with each connection ID that the peer is given, before it can
            use it. The event comes when events are asked for the next time.
    """

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        original_destination_connection_id: bytes | None = None,
        retry_source_connection_id: bytes | None = None,
        session_ticket_fetcher: tls.SessionTicketFetcher | None = None,
        session_ticket_handler: tls.SessionTicketHandler | None = None,
        token_handler: QuicTokenHandler | None = None,
    ) -> None:
        super().__init__(
            configuration=configuration,
            original_destination_connection_id=original_destination_connection_id,
            retry_source_connection_id=retry_source_connection_id,
            session_ticket_fetcher=session_ticket_fetcher,
            session_ticket_handler=session_ticket_handler,
            token_handler=token_handler,
        )
        self.stable_id = self._local_initial_source_connection_id.hex()
        self.server_address: NetworkAddress = None
        self._client: ClientSide | None = None
        self._server: ServerSide | None = None
        self._migration_events: deque[MigrationEvent] = deque()
        self._client_address: NetworkAddress = None
        self._client_cid = b""
        self._client_cid_is_new = False
        self._received = NumberedWindow()
        self._received_is_newest = False
        self._received_from: NetworkAddress = None
        self.peer_connection_ids = PeerConnectionIds(self)
        self._seal = Seal()
        self._key_age = KeyAge()
        self._derive_reset_token: Callable[[NetworkAddress, bytes], bytes] | None = None
        self.on_connection_id_sent: Callable[[bytes], None] = _ignore
        self._first_secrets: dict[tls.Direction, bytes] = {}
        if self._options is not None:
            self._loss: MigratingRecovery = MigratingRecovery(
                congestion_control_algorithm=configuration.congestion_control_algorithm,
                initial_rtt=configuration.initial_rtt,
                max_datagram_size=self._max_datagram_size,
                peer_completed_address_validation=not self._is_client,
                quic_logger=self._quic_logger,
                send_probe=self._send_probe,
                logger=self._logger,
            )
        handlers = getattr(self, FRAME_HANDLERS)
        for frame_type in FrameType:
            handlers[int(frame_type)] = (self._handle_migration_frame, _ONE_RTT_ONLY)

    def derive_reset_tokens(self, derive: Callable[[NetworkAddress, bytes], bytes]) -> None:
        """Give connection IDs of a server reset tokens that can be made again (RFC 9000 10.3.2).

        Those that were issued already keep theirs, except for that of a new connection.

        Args:
            derive: Returns the token of a connection ID that is issued at a local address.
        """
        self._derive_reset_token = derive
        if not self._handshake_complete:
            self._give_reset_tokens(self._host_cids)

    def _give_reset_tokens(self, connection_ids: Sequence[QuicConnectionId]) -> None:
        if self._derive_reset_token is not None and self.server_address is not None:
            for each in connection_ids:
                each.stateless_reset_token = self._derive_reset_token(self.server_address, each.cid)

    def _replenish_connection_ids(self) -> None:
        before = len(self._host_cids)
        super()._replenish_connection_ids()
        self._give_reset_tokens(self._host_cids[before:])

    def change_connection_id(self) -> None:
        """Switch to the next connection ID of the peer, as in aioquic."""
        super().change_connection_id()
        if self._client is not None:
            self._client.change_connection_ids()

    # The extension

    @property
    def migration_state(self) -> str:
        """The name of the state that the migration of this connection is in, in lower case."""
        side = self._client or self._server
        return side.machine.state.name.lower() if side is not None else "idle"

    @property
    def announcement(self) -> ServerMigrationFrame | None:
        """What a server's client was told of a migration that has not been, and may believe."""
        return None if self._server is None else self._server.machine.announcement

    @property
    def hears_any_address(self) -> bool:
        """Whether the peer surely hears this side from an address that it does not know.

        A NAT lets in only what comes from where something was sent to. There is none in front of a
        peer on this host, or on this link.
        """
        peer = address_from_network(self.get_peer_address())
        own = address_from_network(self.server_address)
        if peer is None:
            return False
        host = peer.host
        return host.is_loopback or host.is_link_local or (own is not None and own.host == host)

    @property
    def path_estimate(self) -> PathEstimate:
        """What is known of the path in use."""
        loss = self._loss
        return PathEstimate(
            congestion_window=loss.congestion_window,
            bytes_in_flight=loss.bytes_in_flight,
            smoothed_rtt=loss._rtt_smoothed if loss._rtt_initialized else None,
            min_rtt=loss._rtt_min if loss._rtt_initialized else None,
            probe_timeout=loss.get_probe_timeout(),
            generation=getattr(loss, "generation", 0),
        )

    @property
    def spare_connection_ids(self) -> int:
        """How many connection IDs of the peer have not been used yet."""
        return len(self._peer_cid_available)

    @property
    def own_connection_ids(self) -> tuple[bytes, ...]:
        """The connection IDs under which the peer may address this side."""
        return tuple(cid.cid for cid in self._host_cids)

    @property
    def is_peer_validated(self) -> bool:
        """Whether the peer is known to receive what is sent to its address (RFC 9000 8)."""
        return bool(self._network_paths) and self._network_paths[0].is_validated

    @property
    def next_packet_number(self) -> int:
        """The number of the next packet that is sent."""
        return int(self._packet_number)

    def has_acknowledged(self, since: int) -> bool:
        """Whether the peer has acknowledged a 1-RTT packet with this number or a later one."""
        space = self._spaces.get(_ONE_RTT)
        return space is not None and bool(space.largest_acked_packet >= since)

    @property
    def is_sealed(self) -> bool:
        """Whether the connection is frozen, or a copy that is not active yet: it does nothing."""
        return self._seal.is_shut

    @property
    def quiet_since(self) -> float | None:
        """Since when nothing has restarted the idle timer; None when there is none.

        Only genuine packets of the peer do, and the first one after that which asks it for an
        answer (RFC 9000 10.1).
        """
        if self._close_at is None or self._close_event is not None:
            return None
        return self._close_at - self._idle_timeout()

    @property
    def longest_quiet(self) -> float:
        """How many seconds the connection can be quiet with no risk that it is forgotten.

        That is half of the idle timeout of both sides, and what most NATs bear (RFC 9000 10.1.2).
        """
        return min(self._idle_timeout() / 2, LONGEST_QUIET)

    @property
    def close_reason(self) -> quic_events.ConnectionTerminated | None:
        """Why the connection is being closed; known before aioquic's event, which ends it."""
        return self._close_event

    def end_now(self, reason: str) -> None:
        """End without another word, and without the closing period (RFC 9000 10.2).

        Args:
            reason: What is said here, unless the connection is being closed for another one.
        """
        if self._state is not QuicConnectionState.TERMINATED:
            if self._close_event is None:
                self._close_event = quic_events.ConnectionTerminated(
                    QuicErrorCode.CONNECTION_REFUSED, QuicFrameType.PADDING, reason
                )
            self._close_end()

    def next_event(self) -> quic_events.QuicEvent | None:
        """Return the next event, or None, as in aioquic."""
        return None if self._seal.is_shut else super().next_event()

    def next_migration_event(self) -> MigrationEvent | None:
        """Return the next event of the extension, or None."""
        if self._seal.is_shut or not self._migration_events:
            return None
        return self._migration_events.popleft()

    def emit(self, event: MigrationEvent) -> None:
        """Put an event into the queue, and into the qlog trace."""
        log_event(self._quic_logger, event)
        self._migration_events.append(event)

    def migration_obstacle(
        self, protocol: MigrationProtocol, address: Address | MigrationAddress | None = None
    ) -> MigrationErrorCode | None:
        """Return why `imminent_migration` would fail now, or None. Nothing changes.

        Raises:
            RuntimeError: On a client.
        """
        self._assert_server()
        if self._options is None:
            return MigrationErrorCode.MIGRATION_DISABLED
        if self._server is None:
            return MigrationErrorCode.HANDSHAKE_NOT_FINISHED
        return self._server.machine.obstacle(
            protocol, _migration_address(address), address_from_network(self.server_address)
        )

    def imminent_migration(
        self,
        protocol: MigrationProtocol,
        address: Address | MigrationAddress | None = None,
        *,
        now: float,
    ) -> None:
        """Announce that the server will be moved; `MigrationReady` tells when it may be.

        Args:
            protocol: One protocol that was negotiated.
            address: The destination, for Explicit only.
            now: The current time in seconds.

        Raises:
            MigrationError: If the connection cannot migrate. It is closed then; ask
                `migration_obstacle` first to avoid that.
            RuntimeError: On a client.
        """
        problem = self.migration_obstacle(protocol, address)
        if problem is not None:
            raise self._migration_failed(problem)
        assert self._server is not None
        self._server.imminent(protocol, _migration_address(address), now)

    def abort_migration(self, *, now: float) -> None:
        """Give up an announced migration; the connection goes on as if nothing had happened.

        Raises:
            MigrationError: MIGRATION_ALREADY_IN_PROGRESS after the network switch.
            RuntimeError: On a client.
        """
        self._assert_server()
        if self._server is not None:
            self._server.abort()

    def network_switch(self, address: NetworkAddress, *, now: float) -> None:
        """Go on at another local address, after the connection was ready.

        Args:
            address: The new local address.
            now: The current time in seconds.

        Raises:
            MigrationError: If the connection is not ready. It is closed then.
            RuntimeError: On a client.
        """
        self._assert_server()
        if self._server is None:
            raise self._migration_failed(
                MigrationErrorCode.MIGRATION_DISABLED
                if self._options is None
                else MigrationErrorCode.HANDSHAKE_NOT_FINISHED
            )
        try:
            self._server.network_switch(address, self._seal.clock(now))
        except MigrationError as exc:
            raise self._migration_failed(exc.code) from None

    def _assert_server(self) -> None:
        if self._is_client:
            raise RuntimeError("only the connections of a server can be asked to migrate")

    def probe_server_address(self, *, now: float) -> None:
        """Look for the server now, at the announced address or in its pool (proactive clients).

        Nothing happens where the client knows of no other address.
        """
        if self._client is not None:
            self._client.timeout(now)

    # Hooks: keys

    def _update_traffic_key(
        self,
        direction: tls.Direction,
        epoch: tls.Epoch,
        cipher_suite: tls.CipherSuite,
        secret: bytes,
    ) -> None:
        super()._update_traffic_key(direction, epoch, cipher_suite, secret)
        if epoch is _ONE_RTT:
            # Key updates leave the key for header protection as it is (RFC 9001 6).
            self._first_secrets[direction] = secret

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self._number_received_packets()

    def _number_received_packets(self) -> None:
        if self._options is not None:
            self._received = NumberedWindow()
            self._spaces[_ONE_RTT].received_packets = self._received

    def _confirm_handshake(self) -> None:
        first_time = not self._handshake_confirmed
        super()._confirm_handshake()
        if first_time and not self._is_client:
            self._client_address = self._network_paths[0].addr
            client = address_from_network(self._client_address)
            self.emit(HandshakeFinished(client, self.stable_id, self.negotiated))
            if isinstance(self._options, ServerMigration):
                family = client.family if client else 4
                self._server = self._make_server_side(self._options, family)
                self._server.handshake_finished()

    def _make_server_side(self, options: ServerMigration, family: int) -> ServerSide:
        return ServerSide(self, options, self.negotiated, family)

    # Hooks: receiving

    def receive_datagram(self, data: bytes, addr: NetworkAddress, now: float) -> None:
        """Handle an incoming datagram, as in aioquic.

        Args:
            data: The datagram.
            addr: Where it came from.
            now: The current time in seconds.
        """
        if self._seal.is_shut:
            return
        if self._is_client and self._is_stateless_reset(data, addr):
            self._end_by_reset(now)
        elif self._options is None:
            super().receive_datagram(data, addr, now)
        elif self._is_client:
            self._receive_as_client(data, addr, now)
        else:
            super().receive_datagram(data, addr, now)
            self._detect_client_migration()
            if self._server is not None:
                self._server.datagram_received(now)
        self.peer_connection_ids.look(now)

    def _receive_as_client(self, data: bytes, addr: NetworkAddress, now: float) -> None:
        if self._client is None and self.negotiated is not None:
            self._start_client_side()
        client = self._client
        if client is not None and addr == client.home:
            super().receive_datagram(data, addr, now)
            return
        known = any(path.addr == addr for path in self._network_paths)
        copied = (
            client is not None
            and not is_long_header(data[0] if data else 0)
            and client.is_copied(addr, data[1 : 1 + len(self.host_cid)])
        )
        if client is not None and copied:
            if not known:
                super().receive_datagram(data, addr, now)  # which drops it, and logs that
            if client.overheard(data, addr, now):
                super().receive_datagram(data, addr, now)
                client.drop_stray(addr)
            return
        if client is None or known or not client.expects(addr):
            super().receive_datagram(data, addr, now)  # which drops it where it is not known
            if client is not None:
                client.drop_stray(addr)
            return
        # An address never used: it becomes a path if the machine moves there, which it does only
        # for an authenticated packet.
        path = QuicNetworkPath(addr)
        path.local_challenge_sent = True  # nothing is sent there meanwhile
        self._network_paths.append(path)
        super().receive_datagram(data, addr, now)
        is_used = path is self._network_paths[0] or client.is_known(addr)
        if path in self._network_paths and path.peer_cid is None and not is_used:
            self._network_paths.remove(path)

    @property
    def newest_packet(self) -> int:
        """The largest number of a 1-RTT packet that was received and processed."""
        largest: int = self._spaces[_ONE_RTT].largest_received_packet
        return largest

    def authenticate(self, data: bytes) -> tuple[int, bytes] | None:
        """Return number and payload of the 1-RTT packet in a datagram, if the peer has made it.

        It is not processed, and may be received later. But if the peer has updated its keys, so are
        ours (RFC 9001 6.2): it may not be able to read anything else.
        """
        try:
            _, payload, number = self._cryptos[_ONE_RTT].decrypt_packet(
                data, 1 + len(self.host_cid), self._spaces[_ONE_RTT].expected_packet_number
            )
        except CryptoError:
            return None
        return number, payload

    def _find_preferred_address(self) -> NetworkAddress | None:
        preferred: NetworkAddress = super()._find_preferred_address()
        if self._options is None or preferred is None:
            return preferred
        # What a server may name does not depend on how it does (RFC 9000 21.5.6).
        named, home = (read_address(each) for each in (preferred, self._network_paths[0].addr))
        is_refused = named is None or home is None or refusal(named, home) is not None
        return None if is_refused else preferred

    # Stateless reset (RFC 9000 10.3)

    def _is_stateless_reset(self, data: bytes, addr: NetworkAddress) -> bool:
        """Whether a datagram says that the server does not know this connection.

        Only the server's own address can say so. Where the server may be about to move, or may be
        at another address already, nobody can: the connection may live where it is not looked for.
        """
        token = self._peer_cid.stateless_reset_token
        return (
            bool(token)
            and hmac.compare_digest(data[-len(token) :], token)
            and len(data) >= _SMALLEST_RESET
            and not data[0] & 0x80
            and self._state not in END_STATES
            and self._network_paths[0].addr == addr
            and (self._client is None or self._client.is_settled)
        )

    def _end_by_reset(self, now: float) -> None:
        reason = "stateless reset: the server does not know this connection (any more)"
        self._close_event = quic_events.ConnectionTerminated(
            QuicErrorCode.NO_ERROR, QuicFrameType.PADDING, reason
        )
        self._close_begin(is_initiator=False, now=now)

    def forget_reset_tokens(self) -> None:
        """Obey no token that was issued before the server has moved.

        The host that it has left, or another one there, could be made to tell it (RFC 9000 21.11).
        """
        for each in (self._peer_cid, *self._peer_cid_available):
            each.stateless_reset_token = b""

    def _start_client_side(self) -> None:
        home = address_from_network(self._network_paths[0].addr)
        if home is not None and self.negotiated is not None:
            assert isinstance(self._options, ClientMigration)
            self._client = ClientSide(
                self, self._options, self.negotiated, home, self.peer_connection_ids
            )

    def _handle_crypto_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        # What is kept of a handshake is bounded (RFC 9000 7.5), and so is a TLS message: aioquic
        # copies all of it for each frame. All that a client has to say is two messages.
        start = buf.tell()
        end = buf.pull_uint_var() + buf.pull_uint_var()
        buf.seek(start)
        is_long = LONGEST_CLIENT_HANDSHAKE < end <= UINT_VAR_MAX and not self._is_client
        if not is_long:
            super()._handle_crypto_frame(context, frame_type, buf)
        if is_long or len(self.tls._receive_buffer) > _LONGEST_MESSAGE:
            raise QuicConnectionError(
                error_code=QuicErrorCode.CRYPTO_BUFFER_EXCEEDED,
                frame_type=frame_type,
                reason_phrase="too much crypto buffering",
            )

    def _payload_received(
        self, context: QuicReceiveContext, plain: bytes, crypto_frame_required: bool = False
    ) -> tuple[bool, bool]:
        side = self._client or self._server
        if side is None or context.epoch is not _ONE_RTT:
            return super()._payload_received(context, plain, crypto_frame_required)
        is_newest = self._received.current > self._spaces[_ONE_RTT].largest_received_packet
        if self._client is not None:
            self._received_is_newest = is_newest
            self._received_from = context.network_path.addr
        is_ack_eliciting, is_probing = super()._payload_received(
            context, plain, crypto_frame_required
        )
        if self._client is None:
            if not is_newest:
                # aioquic takes it for a change of the client's connection ID, and answers each with
                # one of its own: reordered packets around a change would use them all up.
                context.host_cid = self.host_cid
            return is_ack_eliciting, is_probing
        if is_ack_eliciting:
            self._client.heard(context.time)
        if is_newest and not is_probing and self._state not in END_STATES:
            self._client.packet_received(
                context.network_path.addr,
                context.host_cid,
                self._received.current,
                context.time,
            )
        return is_ack_eliciting, is_probing

    def _handle_migration_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        body = buf.pull_bytes(BODY_SIZES[FrameType(frame_type)])
        frame = decode_frame(frame_type, body)
        if context.quic_logger_frames is not None:
            context.quic_logger_frames.append(encode_frame(frame))
        if self._client is None:
            problem = (
                "server migration was not negotiated"
                if self._is_client
                else "only servers send migration frames"
            )
            raise close_with(PeerError(ConnectionErrorCode.PROTOCOL_VIOLATION, problem), frame_type)
        # Readiness takes one RTT, not one RTT and the delay of an acknowledgement.
        self._spaces[_ONE_RTT].ack_at = context.time
        try:
            self._client.frame_received(
                frame,
                source=context.network_path.addr,
                connection_id=context.host_cid,
                packet_number=self._received.current,
                is_newest=self._received_is_newest,
                now=context.time,
            )
        except PeerError as exc:
            raise close_with(exc, frame_type) from None

    def _handle_path_response_frame(
        self, context: QuicReceiveContext, frame_type: int, buf: Buffer
    ) -> None:
        if self._client is None:
            super()._handle_path_response_frame(context, frame_type, buf)
            return
        start = buf.tell()
        data = buf.pull_bytes(8)
        if self._client.path_answered(
            data,
            source=context.network_path.addr,
            connection_id=context.host_cid,
            packet_number=self._received.current,
            now=context.time,
        ):
            # The server is complete when this is acknowledged.
            self._spaces[_ONE_RTT].ack_at = context.time
            if context.quic_logger_frames is not None and self._quic_logger is not None:
                context.quic_logger_frames.append(
                    self._quic_logger.encode_path_response_frame(data=data)
                )
        else:
            buf.seek(start)
            super()._handle_path_response_frame(context, frame_type, buf)
            self._client.follow_preferred_address()

    def _detect_client_migration(self) -> None:
        cid = self._peer_cid.cid
        if self._server is not None and self._network_paths[0].addr != self._client_address:
            self._client_address = self._network_paths[0].addr
            self._client_cid_is_new = cid != self._client_cid
            self._server.client_moved()
            self.emit(ClientMigrationDetected(address_from_network(self._client_address)))
        self._client_cid = cid

    # Hooks: timers

    def get_timer(self) -> float | None:
        """Return when `handle_timer` has to be called, or None, as in aioquic."""
        if self._seal.is_shut:
            return None
        if self._seal.holds_back(self._packet_number):
            return self._close_at
        with self._thrift():
            at: float | None = super().get_timer()
        side = self._client or self._server
        own_at = side.timer if side is not None else None
        if own_at is None or at is None or self._state in END_STATES:
            return at
        return min(at, own_at)

    def handle_timer(self, now: float) -> None:
        """Handle the timer, as in aioquic.

        Args:
            now: The current time in seconds.
        """
        if self._seal.is_shut:
            return
        timeouts = self._loss._pto_count
        super().handle_timer(now)
        side = self._client or self._server
        if side is not None and self._state not in END_STATES:
            if self._client is not None and self._loss._pto_count > timeouts:
                self._client.timeout(now)
            side.handle_timer(now)
        self.peer_connection_ids.look(now)

    def _abandon_path_validation(self) -> None:
        if self._client is None:
            super()._abandon_path_validation()
            if self._client_cid_is_new and self._state not in END_STATES:
                # Back at the client's former address, but not with what was used at the other one
                super().change_connection_id()
        else:
            deadline = self._network_paths[0].validation_deadline
            assert deadline is not None, "this is called when the deadline has passed"
            self._client.validation_failed(deadline)

    # Hooks: sending

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """Return the datagrams to send and where to, as in aioquic.

        Args:
            now: The current time in seconds.
        """
        if self._seal.is_shut or self._seal.holds_back(self._packet_number):
            return []
        self._renew_keys()
        with self._thrift(), self._shared_connection_id(now):
            datagrams: list[tuple[bytes, NetworkAddress]] = super().datagrams_to_send(now)
        if self._server is not None:
            self._server.sent(now)
        if self._client is not None and self._state not in END_STATES:
            datagrams += self._client.challenges_to_send(datagrams, now)
        return datagrams

    def _renew_keys(self) -> None:
        if self._handshake_confirmed and self._state not in END_STATES:
            phase = self._cryptos[_ONE_RTT].key_phase
            acknowledged = self._spaces[_ONE_RTT].largest_acked_packet
            if self._key_age.is_due(self._packet_number, phase, acknowledged):
                self.request_key_update()

    def _thrift(self) -> AbstractContextManager[None]:
        """Let aioquic spend what the limit against amplification permits on what matters most.

        While a migration is under way that is to find each other again: something is held back for
        the network switch, and a challenge does not wait for room for an acknowledgement.
        """
        server = self._server
        if server is None or not server.is_under_way or self._network_paths[0].is_validated:
            return _UNCHANGED
        return self._holding_back(server.held_back)

    @contextmanager
    def _holding_back(self, held_back: int) -> Iterator[None]:
        path = self._network_paths[0]
        path.bytes_sent += held_back
        space = self._spaces[_ONE_RTT]
        acknowledge_at = None
        if not path.local_challenge_sent and not path.can_send(_CHALLENGE_AND_MORE):
            acknowledge_at, space.ack_at = space.ack_at, None
        try:
            yield
        finally:
            path.bytes_sent -= held_back
            space.ack_at = space.ack_at or acknowledge_at

    def _shared_connection_id(self, now: float) -> AbstractContextManager[None]:
        """Answer a client's challenge from another address, also if it gives no ID for that.

        RFC 9000 9.5 is for what is available: a client that asks a server that has moved, behind a
        NAT that rebinds, would never be answered.
        """
        if self._server is None or not self.peer_connection_ids.have_run_out(now):
            return _UNCHANGED
        return self._sharing([path for path in self._network_paths[1:] if path.peer_cid is None])

    @contextmanager
    def _sharing(self, paths: list[QuicNetworkPath]) -> Iterator[None]:
        for path in paths:
            path.peer_cid = self._peer_cid
        try:
            yield
        finally:
            for path in paths:
                path.peer_cid = None

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        # Called for every 1-RTT packet after the handshake, before stream data is written
        if self._seal.holds_back(builder.packet_number):
            raise QuicPacketBuilderStop
        super()._write_connection_limits(builder, space)
        side = self._client or self._server
        if side is not None:
            side.write_frames(builder)

    def _send_probing_frames(
        self, network_path: QuicNetworkPath, now: float
    ) -> list[tuple[bytes, NetworkAddress]]:
        if self._seal.holds_back(self._packet_number):
            return []
        datagrams: list[tuple[bytes, NetworkAddress]]
        datagrams = super()._send_probing_frames(network_path, now)
        return datagrams

    def _write_new_connection_id_frame(
        self, builder: QuicPacketBuilder, connection_id: QuicConnectionId
    ) -> None:
        super()._write_new_connection_id_frame(builder, connection_id)
        self.on_connection_id_sent(connection_id.cid)

    def _write_path_challenge_frame(
        self, builder: QuicPacketBuilder, network_path: QuicNetworkPath
    ) -> None:
        super()._write_path_challenge_frame(builder, network_path)
        if self._server is not None and network_path is self._network_paths[0]:
            self._server.challenge_written(builder)

    def _write_ack_frame(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, now: float
    ) -> None:
        super()._write_ack_frame(builder, space, now)
        if self._client is not None and space is self._spaces[_ONE_RTT]:
            self._client.acknowledgement_written(builder.packet_number)

    def _on_ack_delivery(
        self, delivery: QuicDeliveryState, space: QuicPacketSpace, highest_acked: int
    ) -> None:
        super()._on_ack_delivery(delivery, space, highest_acked)
        if self._client is not None and space is self._spaces[_ONE_RTT]:
            self._client.acknowledge_answer()

    def _write_path_response_frame(self, builder: QuicPacketBuilder, challenge: bytes) -> None:
        super()._write_path_response_frame(builder, challenge)
        if self._server is not None:
            self._server.path_response_written(builder.packet_number)

    def _on_path_challenge_delivery(
        self, delivery: QuicDeliveryState, network_path: QuicNetworkPath
    ) -> None:
        lost = delivery is not QuicDeliveryState.ACKED
        if self._client is not None and not lost:
            self._client.challenge_acknowledged(network_path)
        if not (lost and self._client is not None and self._client.challenge_lost(network_path)):
            super()._on_path_challenge_delivery(delivery, network_path)

    def _on_new_connection_id_delivery(
        self, delivery: QuicDeliveryState, connection_id: QuicConnectionId
    ) -> None:
        super()._on_new_connection_id_delivery(delivery, connection_id)
        side = self._client or self._server
        if side is not None and delivery is QuicDeliveryState.ACKED:
            side.connection_id_delivered(connection_id.sequence_number)

    # Hooks: the end

    def _close_end(self) -> None:
        if self._close_event is not None:
            reason = printable(self._close_event.reason_phrase)
            self.emit(ConnectionClosed(self._close_event.error_code, reason))
        super()._close_end()

    def _migration_failed(self, code: MigrationErrorCode) -> MigrationError:
        self.emit(MigrationFailed(code))
        self.close(
            error_code=QuicErrorCode.INTERNAL_ERROR,
            frame_type=QuicFrameType.PADDING,
            reason_phrase=f"server migration failed: {code.name}",
        )
        return MigrationError(code)


def _ignore(connection_id: bytes) -> None:
    """Do nothing about a connection ID."""


def _migration_address(address: Address | MigrationAddress | None) -> MigrationAddress | None:
    return MigrationAddress.of(address) if isinstance(address, Address) else address
