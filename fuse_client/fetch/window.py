"""How much to take along with what a reader waits for. Pure.

A neighbour that is needed later saves a request and its wait; one that is not costs the link its bytes. So a window has
what the link brings in about the time that a request takes. Starts of an AI image of 5.8 GB without a plan, in seconds
to ready and MB over the link, for windows of a fixed size:

                256 KiB      512 KiB      1 MiB        2 MiB        4 MiB        8 MiB
    1 Gbit/s    22.4  353    20.8  390    17.4  437    15.2  490    15.9  570    17.2  681
    100 Mbit/s               31.2  390    35.3  437    39.4  494

With the size that is chosen here 15.5 and 490 at 1 Gbit/s (and at 10), 30.6 and 377 at 100 Mbit/s.
"""

from __future__ import annotations

_SECONDS = 0.007  # of a request within a cluster, with what proxy and node do for it; waiting in line is no reason
_FIRST_BYTES = 512 << 10  # before anything is known of the link
_LEAST_BYTES = 128 << 10
_ENOUGH_BYTES = 256 << 10  # to believe the rate of
_MOST_BYTES = 16 << 20  # that are remembered; then what was longer ago counts half


class WindowSize:
    """Follows the rate of the link. All bytes are uncompressed."""

    def __init__(self) -> None:
        self._received = 0.0
        self._seconds = 0.0

    @property
    def bytes(self) -> int:
        if self._received < _ENOUGH_BYTES or not self._seconds:
            return _FIRST_BYTES
        return max(_LEAST_BYTES, int(self._received / self._seconds * _SECONDS))

    def received(self, size: int, seconds: float, streams: int) -> None:
        """An answer brought so much in the time after its first bytes, while so many answers shared the link."""
        self._received += size
        self._seconds += seconds / max(streams, 1)
        if self._received > _MOST_BYTES:
            self._received /= 2
            self._seconds /= 2
