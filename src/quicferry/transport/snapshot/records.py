"""What a snapshot of a connection holds, as records; docs/reference/snapshot.md describes them.

All times are durations in seconds, relative to the moment of the freeze. What holds secrets or data
has no `repr`, so that none gets into a log.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from aioquic.quic.crypto import CIPHER_SUITES
from aioquic.quic.packet import QuicProtocolVersion
from aioquic.quic.recovery import MAX_ACK_RANGES
from aioquic.tls import CipherSuite, cipher_suite_hash

from quicferry.protocol import FrameType, MigrationProtocol
from quicferry.protocol.frames import BODY_SIZES
from quicferry.protocol.server import State

from ..addresses import NetworkAddress, address_from_network
from ..seal import RESERVED_NUMBERS
from .format import MAX_SNAPSHOT_SIZE, Within, check_ranges, demand

_VARINT_MAX = (1 << 62) - 1
_WINDOW_SIZE = 2 * MAX_ACK_RANGES

Number = Annotated[int, Within(0, _VARINT_MAX)]
Limit = Annotated[int, Within(0, 1 << 60)]
Small = Annotated[int, Within(0, 255)]
Window = Annotated[int, Within(1, 1 << 48)]
Seconds = Annotated[float, Within(-1e18, 1e18)]
Rtt = Annotated[float, Within(0, 1e6)]
Data = Annotated[bytes, Within(0, MAX_SNAPSHOT_SIZE)]
Secret = Annotated[bytes, Within(32, 48)]
Cid = Annotated[bytes, Within(0, 20)]
Token = Annotated[bytes, Within(0, 16)]
Challenge = Annotated[bytes, Within(8, 8)]
Text = Annotated[str, Within(0, 255)]
WireAddress = Annotated[bytes, Within(24, 24)]
Ranges = Annotated[tuple[Number, ...], Within(0, 1 << 20)]
"""Disjoint, ascending ranges: the first number and the one after the last, of each."""


@dataclass(frozen=True)
class AddressState:
    """What `socket.recvfrom` returns: two values for IPv4, four for IPv6."""

    host: Text
    port: Annotated[int, Within(0, 0xFFFF)]
    flow: Annotated[int, Within(0, 0xFFFFFFFF)] | None
    scope: Annotated[int, Within(0, 0xFFFFFFFF)] | None

    def __post_init__(self) -> None:
        demand((self.flow is None) == (self.scope is None), "an address of three parts")
        demand(address_from_network(self.value) is not None, "an address that is no IP address")

    @property
    def value(self) -> NetworkAddress:
        """The address as sockets take it."""
        start = (self.host, self.port)
        return start if self.flow is None else (*start, self.flow, self.scope)


@dataclass(frozen=True, repr=False)
class KeyState:
    """The 1-RTT secrets; the key for header protection is that of the first (RFC 9001 6)."""

    cipher_suite: Annotated[int, Within(0, 0xFFFF)]
    phase: Annotated[int, Within(0, 1)]
    update_pending: bool
    receive: Secret
    first_receive: Secret
    send: Secret
    first_send: Secret

    def __post_init__(self) -> None:
        demand(self.cipher_suite in tuple(CIPHER_SUITES), "an unknown cipher suite")
        size = cipher_suite_hash(CipherSuite(self.cipher_suite)).digest_size
        secrets = (self.receive, self.first_receive, self.send, self.first_send)
        demand({len(secret) for secret in secrets} == {size}, "a secret of the wrong length")


@dataclass(frozen=True, repr=False)
class ConnectionIdState:
    """A connection ID."""

    sequence_number: Number
    cid: Cid
    reset_token: Token
    was_sent: bool


@dataclass(frozen=True)
class LimitState:
    """A limit that the client was given: what it is, was told, and has used up."""

    value: Limit
    sent: Limit
    used: Limit


@dataclass(frozen=True)
class PacketState:
    """The packet number space of 1-RTT packets."""

    next_number: Annotated[int, Within(0, _VARINT_MAX - 2 * RESERVED_NUMBERS)]
    largest_acknowledged: Number
    expected: Number
    largest_received: Annotated[int, Within(-1, _VARINT_MAX)]
    largest_received_ago: Seconds | None
    acknowledge_in: Seconds | None
    to_acknowledge: Ranges
    window_start: Number
    window: Ranges
    sent_since_receipt: bool
    spin_bit: bool
    spin_number: Number

    def __post_init__(self) -> None:
        due = self.acknowledge_in is not None
        has_what = bool(self.to_acknowledge) and self.largest_received_ago is not None
        demand(not due or has_what, "an acknowledgement of nothing")
        check_ranges(self.to_acknowledge, 0, _VARINT_MAX)
        check_ranges(self.window, self.window_start, self.window_start + _WINDOW_SIZE)


@dataclass(frozen=True)
class PathRecord:
    """A path to an address of the client; the first one is in use."""

    address: AddressState
    bytes_received: Number
    bytes_sent: Number
    is_validated: bool
    is_challenged: bool
    sent_challenges: Annotated[tuple[Challenge, ...], Within(0, 5)]
    unanswered_challenges: Annotated[tuple[Challenge, ...], Within(0, 32)]
    reserved_cid: ConnectionIdState | None
    validated_in: Seconds | None


@dataclass(frozen=True)
class RttState:
    """The RTT estimate (RFC 9002 5)."""

    latest: Rtt
    least: Rtt
    smoothed: Rtt
    variance: Rtt


@dataclass(frozen=True)
class RecoveryState:
    """Loss recovery and congestion control of the path in use."""

    congestion_window: Window
    slow_start_threshold: Window | None
    initial_rtt: Annotated[float, Within(1e-6, 1e6)]
    rtt: RttState | None
    max_ack_delay: Rtt
    generation: Number


@dataclass(frozen=True)
class LocalState:
    """What the client was told, and may use."""

    max_data: LimitState
    max_streams_bidi: LimitState
    max_streams_uni: LimitState
    max_stream_data_bidi_local: Limit
    max_stream_data_bidi_remote: Limit
    max_stream_data_uni: Limit
    next_stream_bidi: Number
    next_stream_uni: Number
    idle_timeout: Annotated[float, Within(0, 1e9)]
    max_datagram_frame_size: Number | None


@dataclass(frozen=True)
class RemoteState:
    """What the client allows."""

    active_connection_id_limit: Number
    max_idle_timeout: Seconds | None
    max_datagram_frame_size: Number | None
    max_data: Number
    max_data_used: Number
    max_stream_data_bidi_local: Number
    max_stream_data_bidi_remote: Number
    max_stream_data_uni: Number
    max_streams_bidi: Number
    max_streams_uni: Number


@dataclass(frozen=True, repr=False)
class SenderState:
    """The sending part of a stream: its data from the first byte not acknowledged on."""

    start: Number
    data: Data
    highest_sent: Number
    pending: Ranges
    acknowledged: Ranges
    has_end: bool
    end_pending: bool
    end_acknowledged: bool
    is_idle: bool
    is_finished: bool
    reset_code: Number | None
    reset_pending: bool

    def __post_init__(self) -> None:
        stop = self.start + len(self.data)
        check_ranges(self.pending, self.start, stop)
        check_ranges(self.acknowledged, self.start, stop)
        demand(self.highest_sent <= stop, "more sent on a stream than was written")
        demand(self.has_end or not self.end_pending, "the end of a stream without an end")
        is_reset = self.reset_code is not None
        demand(is_reset or not self.reset_pending, "a reset without a code")
        demand(self.is_idle or not is_reset, "data to send after a reset")


@dataclass(frozen=True, repr=False)
class ReceiverState:
    """The receiving part of a stream: its data from the first byte not delivered on, with gaps."""

    start: Number
    data: Data
    received: Ranges
    highest_received: Number
    final_size: Number | None
    is_finished: bool
    stop_code: Number | None
    stop_pending: bool

    def __post_init__(self) -> None:
        check_ranges(self.received, self.start, self.start + len(self.data))
        demand(self.stop_code is not None or not self.stop_pending, "a stop without a code")


@dataclass(frozen=True)
class StreamState:
    """A stream that is not over on both sides."""

    stream_id: Number
    is_blocked: bool
    max_data_local: Limit
    max_data_local_sent: Limit
    max_data_remote: Number
    consumed: Limit | None
    sender: SenderState | None
    receiver: ReceiverState | None

    def __post_init__(self) -> None:
        kind = self.stream_id % 4  # RFC 9000 2.1
        demand((self.sender is None) == (kind == 2), "a stream that cannot be written to")
        demand((self.receiver is None) == (kind == 3), "a stream that cannot be read from")


MOST_PACKETS, MOST_FRAMES = 1 << 16, 1000
"""Packets in flight that are carried, and frames with stream data in one of them."""


@dataclass(frozen=True)
class SentDataState:
    """Stream data in a packet that is in flight."""

    stream_id: Number
    start: Number
    stop: Number
    is_end: bool


@dataclass(frozen=True)
class SentPacketState:
    """A packet with stream data that is in flight."""

    number: Number
    size: Annotated[int, Within(0, 0xFFFF)]
    sent_ago: Annotated[float, Within(0, 1e9)]
    data: Annotated[tuple[SentDataState, ...], Within(1, MOST_FRAMES)]


@dataclass(frozen=True, repr=False)
class EventState:
    """An event that the application has not collected."""

    kind: Annotated[int, Within(0, 4)]
    number: Annotated[int, Within(-(1 << 63), (1 << 63) - 1)]
    code: Number
    data: Data
    is_end: bool


@dataclass(frozen=True)
class FrameState:
    """A migration frame that is to be sent."""

    type: Small
    body: Annotated[bytes, Within(0, 24)]

    def __post_init__(self) -> None:
        demand(self.type in tuple(FrameType), "an unknown migration frame")
        demand(BODY_SIZES[FrameType(self.type)] == len(self.body), "a frame of the wrong length")


@dataclass(frozen=True)
class MigrationState:
    """The server's state machine, and what it has set going."""

    state: Text
    protocol: Small | None
    family: Annotated[int, Within(4, 6)]
    pool: Annotated[tuple[WireAddress, ...], Within(0, 64)]
    pool_unacknowledged: Annotated[tuple[WireAddress, ...], Within(0, 64)]
    announcement: WireAddress | None
    is_announcement_acknowledged: bool
    withdrawal: WireAddress | None
    has_connection_ids: bool
    switched_to: WireAddress | None
    is_migrated_acknowledged: bool
    frames: Annotated[tuple[FrameState, ...], Within(0, 64)]
    must_be_heard: bool
    retire_later: Annotated[tuple[Number, ...], Within(0, 1000)]
    delivered: Annotated[tuple[Number, ...], Within(0, 1000)]
    call_in: Seconds | None
    calls: Small
    is_heard: bool
    newest_before_switch: Annotated[int, Within(-1, _VARINT_MAX)]
    awaited: Annotated[tuple[Number, ...], Within(0, 64)]
    is_timeout_quick: bool

    def __post_init__(self) -> None:
        demand(self.state in State.__members__, "an unknown state of the migration")
        known = self.protocol is None or self.protocol in map(int, MigrationProtocol)
        demand(known, "an unknown migration protocol")
        resting = self.state in ("IDLE", "WITHDRAWING")
        demand(self.protocol is not None or resting, "a migration by no protocol")
        withdraws = self.state in ("WITHDRAWING", "QUEUED")
        demand(withdraws == (self.withdrawal is not None), "a withdrawal at the wrong time")
        demand(self.family in (4, 6), "an unknown address family")


@dataclass(frozen=True, repr=False)
class Snapshot:
    """Everything that a confirmed connection of a server is."""

    quic_version: Annotated[int, Within(1, 0xFFFFFFFF)]
    original_destination_cid: Cid
    initial_source_cid: Cid
    alpn: Text | None
    negotiated: Small | None
    knows_withdrawals: bool
    keys: KeyState
    packets: PacketState
    host_cid: Cid
    host_cids: Annotated[tuple[ConnectionIdState, ...], Within(1, 64)]
    next_host_sequence: Number
    peer_cid: ConnectionIdState
    peer_cids: Annotated[tuple[ConnectionIdState, ...], Within(0, 64)]
    peer_sequences: Ranges
    peer_retire_prior_to: Number
    retiring: Annotated[tuple[Number, ...], Within(0, 1000)]
    server_address: AddressState | None
    client_address: AddressState | None
    client_cid: Cid
    client_cid_is_new: bool
    paths: Annotated[tuple[PathRecord, ...], Within(1, 64)]
    recovery: RecoveryState
    idle_in: Seconds
    local: LocalState
    remote: RemoteState
    streams: Annotated[tuple[StreamState, ...], Within(0, 1 << 20)]
    flight: Annotated[tuple[SentPacketState, ...], Within(0, MOST_PACKETS)]
    streams_blocked_pending: bool
    crypto_sender: SenderState
    crypto_receiver: ReceiverState
    handshake_done_pending: bool
    probe_pending: bool
    pings: Annotated[tuple[Annotated[int, Within(-(1 << 63), (1 << 63) - 1)], ...], Within(0, 1000)]
    datagrams: Annotated[tuple[Data, ...], Within(0, 1 << 20)]
    events: Annotated[tuple[EventState, ...], Within(0, 1 << 20)]
    migration: MigrationState | None

    def __post_init__(self) -> None:
        versions = (QuicProtocolVersion.VERSION_1, QuicProtocolVersion.VERSION_2)
        demand(self.quic_version in versions, "an unknown version of QUIC")
        sizes = {len(cid.cid) for cid in self.host_cids} | {len(self.host_cid)}
        demand(len(sizes) == 1, "connection IDs of different lengths")
        sequences = [cid.sequence_number for cid in self.host_cids]
        demand(max(sequences) < self.next_host_sequence, "a connection ID of the future")
        demand(all(len(cid.reset_token) == 16 for cid in self.host_cids), "no reset token")
        check_ranges(self.peer_sequences, 0, _VARINT_MAX)
        starts, stops = self.peer_sequences[::2], self.peer_sequences[1::2]
        demand(sum(stops) - sum(starts) <= 1 << 16, "more connection IDs than anybody uses")
        demand(len({s.stream_id for s in self.streams}) == len(self.streams), "a stream twice")
        numbers = [packet.number for packet in self.flight]
        demand(numbers == sorted(set(numbers)), "packets in flight out of order")
        demand(not numbers or numbers[-1] < self.packets.next_number, "a packet of the future")
        local = self.local
        for stream in self.streams:
            opened = (
                local.max_streams_bidi.used * 4,
                local.next_stream_bidi,
                local.max_streams_uni.used * 4,
                local.next_stream_uni,
            )[stream.stream_id % 4]
            demand(stream.stream_id < opened, "a stream that was never opened")
