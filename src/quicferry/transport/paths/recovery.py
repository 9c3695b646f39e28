"""Loss recovery over changing paths: each path has its own congestion and RTT state.

RFC 9000 9.4: on a change of path both start afresh, and packets sent on the old path must not
count for the new one. Packets of another path stay in the packet number space, so that they are
still acknowledged or found lost, but are taken out of the flight that the congestion controller
sees, and give no RTT sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from aioquic.quic.congestion.base import QuicCongestionControl, create_congestion_control
from aioquic.quic.packet_builder import QuicSentPacket
from aioquic.quic.rangeset import RangeSet
from aioquic.quic.recovery import (
    QuicPacketNumberWindow,
    QuicPacketPacer,
    QuicPacketRecovery,
    QuicPacketSpace,
)

_ESTIMATE = (
    "_rtt_initial",
    "_pto_count",
    "_rtt_first_sample_time",
    "_rtt_initialized",
    "_rtt_latest",
    "_rtt_min",
    "_rtt_smoothed",
    "_rtt_variance",
)


@dataclass(frozen=True)
class PathEstimate:
    """What loss recovery knows of the path in use.

    Attributes:
        congestion_window: Bytes that may be in flight.
        bytes_in_flight: Bytes that are.
        smoothed_rtt: The round-trip time in seconds (RFC 9002 5.3); None before the first sample.
        min_rtt: The least round-trip time in seconds; None before the first sample.
        probe_timeout: Seconds until a lost packet at the end of a flight is noticed (RFC 9002
            6.2.1), without back-off.
        generation: Tells one path's state from another's; the return to a path restores it.
    """

    congestion_window: int
    bytes_in_flight: int
    smoothed_rtt: float | None
    min_rtt: float | None
    probe_timeout: float
    generation: int


@dataclass
class PathState:
    """What is put aside of a path that is left, and restored on the return to it."""

    congestion_control: QuicCongestionControl
    pacer: QuicPacketPacer
    estimate: dict[str, Any]
    flight: list[tuple[QuicPacketSpace, QuicSentPacket]]
    generation: int
    answered_at: float


class MigratingRecovery(QuicPacketRecovery):
    """aioquic's loss recovery, which can leave a path and return to it.

    Attributes:
        quick_timeout: While set, and as long as the path in use has given no RTT sample, the first
            probe timeout takes at most this many seconds, the next twice as many, and so on.
        generation: See `PathEstimate`.
        answered_at: When somebody first answered on the path in use, if it was a guess before;
            infinity while it is one.
        awaited: What to do when a packet is acknowledged, by its number; also when it was given up
            for lost before.
        never_sent: Packet numbers that were left out.
        on_never_sent: Called when one of these is acknowledged.
    """

    def __init__(
        self, *, congestion_control_algorithm: str, max_datagram_size: int, **arguments: Any
    ) -> None:
        super().__init__(
            congestion_control_algorithm=congestion_control_algorithm,
            max_datagram_size=max_datagram_size,
            **arguments,
        )
        self.quick_timeout: float | None = None
        self.generation = 0
        self.answered_at = -math.inf
        self._generations = 0
        self.awaited: dict[int, Callable[[], None]] = {}
        self.never_sent = range(0)
        self.on_never_sent: Callable[[], None] = lambda: None
        self._algorithm = congestion_control_algorithm
        self._datagram_size = max_datagram_size
        self._initial_rtt = self._rtt_initial
        self._has_changed_path = False

    def leave_path(self) -> PathState:
        """Start afresh for another path, and return the state of this one."""
        self._has_changed_path = True
        state = PathState(
            congestion_control=self._cc,
            pacer=self._pacer,
            estimate={name: getattr(self, name) for name in _ESTIMATE},
            flight=self._take_flight(),
            generation=self.generation,
            answered_at=self.answered_at,
        )
        self._generations += 1
        self.generation = self._generations
        self.answered_at = -math.inf
        self._cc = create_congestion_control(self._algorithm, max_datagram_size=self._datagram_size)
        self._pacer = self._fresh_pacer()
        # Nothing is known of the new path, but a timeout shorter than on this one would be rash
        # (RFC 9002 6.2.2).
        self._rtt_initial = max(self._initial_rtt, self.get_probe_timeout() / 2)
        self._pto_count = 0
        self._rtt_first_sample_time = 0.0
        self._rtt_initialized = False
        self._rtt_latest = 0.0
        self._rtt_min = math.inf
        self._rtt_smoothed = 0.0
        self._rtt_variance = 0.0
        return state

    def give_up(self, state: PathState, *, now: float) -> None:
        """Send again what is still in flight on a path that was left for good."""
        for space, packet in state.flight:
            if space.sent_packets.get(packet.packet_number) is packet:
                self._on_packets_lost(
                    congestion_event=False, now=now, packets=[packet], space=space
                )

    def return_to_path(self, state: PathState, *, now: float) -> None:
        """Go on with the state of a path that was left.

        What was sent meanwhile went to an address where nobody is: it is sent again, and says
        nothing about congestion.
        """
        for space, packet in self._take_flight():
            self._on_packets_lost(congestion_event=False, now=now, packets=[packet], space=space)
        self._cc = state.congestion_control
        self._pacer = state.pacer
        for name, value in state.estimate.items():
            setattr(self, name, value)
        self._pto_count = 0  # somebody is there
        self.generation = state.generation
        self.answered_at = state.answered_at
        self._cc.bytes_in_flight = 0
        for space, packet in state.flight:
            if space.sent_packets.get(packet.packet_number) is packet:
                packet.in_flight = True
                self._cc.bytes_in_flight += packet.sent_bytes

    def on_ack_received(
        self, *, ack_rangeset: RangeSet, ack_delay: float, now: float, space: QuicPacketSpace
    ) -> None:
        """Update metrics; a packet of another path gives no RTT sample (RFC 9000 9.4)."""
        left_out = self.never_sent
        if any(r.start < left_out.stop and left_out.start < r.stop for r in ack_rangeset):
            self.on_never_sent()
            return
        self._update_metrics(ack_rangeset, ack_delay, now, space)
        for number in [n for n in self.awaited if any(n in acked for acked in ack_rangeset)]:
            self.awaited.pop(number, lambda: None)()

    def _update_metrics(
        self, ack_rangeset: RangeSet, ack_delay: float, now: float, space: QuicPacketSpace
    ) -> None:
        largest = space.sent_packets.get(ack_rangeset.bounds().stop - 1)
        if self._has_changed_path and largest is not None and not largest.in_flight:
            estimate = {name: getattr(self, name) for name in _ESTIMATE if name != "_pto_count"}
            pacer, self._pacer = self._pacer, self._fresh_pacer()
            super().on_ack_received(
                ack_rangeset=ack_rangeset, ack_delay=ack_delay, now=now, space=space
            )
            self._pacer = pacer
            for name, value in estimate.items():
                setattr(self, name, value)
            return
        super().on_ack_received(
            ack_rangeset=ack_rangeset, ack_delay=ack_delay, now=now, space=space
        )

    def _on_packets_lost(
        self,
        *,
        congestion_event: bool = True,
        now: float,
        packets: Iterable[QuicSentPacket],
        persistent_congestion: bool = False,
        space: QuicPacketSpace,
    ) -> None:
        """Take for congestion only what is lost of the packets that somebody was there for."""
        too_early: list[QuicSentPacket] = []
        others: list[QuicSentPacket] = []
        for packet in packets:
            is_early = packet.sent_time is None or packet.sent_time < self.answered_at
            (too_early if is_early else others).append(packet)
        super()._on_packets_lost(congestion_event=False, now=now, packets=too_early, space=space)
        super()._on_packets_lost(
            congestion_event=congestion_event,
            now=now,
            packets=others,
            persistent_congestion=persistent_congestion
            and self._in_persistent_congestion(packets=others),
            space=space,
        )

    def get_loss_detection_time(self, *, amplification_limited: bool) -> float | None:
        """Return when the loss detection timer fires, or None."""
        at: float | None = super().get_loss_detection_time(
            amplification_limited=amplification_limited
        )
        if (
            at is None
            or self.quick_timeout is None
            or self._rtt_initialized
            or self._get_loss_space() is not None
        ):
            return at
        quick: float = self.quick_timeout * 2**self._pto_count
        return min(at, self._time_of_last_sent_ack_eliciting_packet + quick)

    def _fresh_pacer(self) -> QuicPacketPacer:
        return QuicPacketPacer(max_datagram_size=self._datagram_size)

    def _take_flight(self) -> list[tuple[QuicPacketSpace, QuicSentPacket]]:
        flight = [
            (space, packet)
            for space in self.spaces
            for packet in space.sent_packets.values()
            if packet.in_flight
        ]
        for _, packet in flight:
            packet.in_flight = False
        return flight


class NumberedWindow(QuicPacketNumberWindow):
    """Remembers the number of the packet that is being received.

    aioquic keeps it in a local variable, and asks the window about it before it looks into the
    packet.
    """

    current = -1

    def __contains__(self, packet_number: int) -> bool:
        self.current = packet_number
        return super().__contains__(packet_number)
