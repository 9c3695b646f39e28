"""How often a client looks for its server: quickly while the moment is near, then less and less."""

from __future__ import annotations

# So many packets are sent at the configured interval; with the default that takes one address five
# seconds, and a pool of three a third of that. From then on the interval follows the time that has
# passed: it grows by 3 % each time, and by half of that for each further address of a pool.
_QUICK_PACKETS = 250
_GROWTH = 1.03
_SLOWEST_INTERVAL = 2.0
# With the defaults these end after ten minutes.
_SLOW_STEPS = 430


class Effort:
    """What has been spent so far on one search, and when to go on.

    Args:
        interval: Seconds between two probes at first.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._packets = self._steps = 0.0
        self._packets_before = self._steps_before = 0.0
        self._silent_since = -1

    def restart(self) -> None:
        """Begin another search."""
        self._packets = self._steps = 0.0
        self._packets_before = self._steps_before = 0.0

    def look_closely(self, newest_packet: int) -> None:
        """Probe quickly again: home is silent, so the moment that was announced may be now.

        Args:
            newest_packet: The number of the last packet that was received. Only the first silence
                after it counts.
        """
        if newest_packet > self._silent_since:
            self._silent_since = newest_packet
            self._packets_before += self._packets
            self._steps_before += self._steps
            self._packets = self._steps = 0.0

    def calm_down(self, newest_packet: int) -> None:
        """Go on as before a silence that was a false alarm, if something was heard since."""
        if newest_packet > self._silent_since:
            self._packets += self._packets_before
            self._steps += self._steps_before
            self._packets_before = self._steps_before = 0.0

    @property
    def is_exhausted(self) -> bool:
        """Whether it has been long enough."""
        return self._steps + self._steps_before >= _SLOW_STEPS

    def spend(self, packets: float, steps: float) -> float:
        """Take note of a probe, and return how many seconds there are until the next.

        Args:
            packets: What it counts for, in packets of about 40 bytes.
            steps: By how many steps it makes the interval longer, once that grows.
        """
        self._packets += packets
        if self._packets > _QUICK_PACKETS:
            self._steps = min(self._steps + steps, _SLOW_STEPS)
        slow: float = min(_SLOWEST_INTERVAL, self._interval * _GROWTH**self._steps)
        return max(self._interval, slow)
