"""Keeps what is sent to a rate. Pure."""

from __future__ import annotations


class Pace:
    """In any time t, at most ``bytes_per_second`` x t and one piece more is sent, if its pauses are kept.

    Time in which nothing was sent is not made up for: a proxy that comes back is not met by all that was missed.
    """

    def __init__(self, bytes_per_second: int) -> None:
        """0 = no limit."""
        self.bytes_per_second = bytes_per_second
        self._free_at = float("-inf")

    def pause(self, size: int, now: float) -> float:
        """``size`` bytes are sent at ``now`` (monotonic): seconds until the next piece may be."""
        if not self.bytes_per_second:
            return 0.0
        self._free_at = max(self._free_at, now) + size / self.bytes_per_second
        return self._free_at - now
