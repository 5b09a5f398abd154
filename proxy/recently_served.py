"""Which chunks nodes have asked for lately, in a few MiB whatever their number."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterable

from fastpull.cache.digest import ChunkId

_WORDS = struct.Struct("<4I16x")  # a chunk id is a hash already: its words serve as the filter's hashes


class RecentlyServed:
    """Two Bloom filters that take turns: a chunk counts as recent for one to two periods.

    With the default 4 MiB per filter and a million chunks in it (64 GB of content) one other chunk in 6,000
    counts as recent by mistake, which only means that it is evicted a little later.
    """

    def __init__(
        self, *, bits: int = 1 << 25, period_seconds: float = 3600.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        assert bits & (bits - 1) == 0, "a power of two: it is used as a mask"
        self._mask = bits - 1
        self._period = period_seconds
        self._clock = clock
        self._current = bytearray(bits // 8)
        self._previous = bytearray(bits // 8)
        self._turn_at = clock() + period_seconds

    def add(self, chunks: Iterable[ChunkId]) -> None:
        self._turn()
        mask, current = self._mask, self._current
        for chunk in chunks:
            for word in _WORDS.unpack(chunk):
                word &= mask
                current[word >> 3] |= 1 << (word & 7)

    def __contains__(self, chunk: ChunkId) -> bool:
        return any(self._has(bits, chunk) for bits in (self._current, self._previous))

    def _has(self, bits: bytearray, chunk: ChunkId) -> bool:
        mask = self._mask
        return all(bits[(word & mask) >> 3] & (1 << (word & 7)) for word in _WORDS.unpack(chunk))

    def _turn(self) -> None:
        now = self._clock()
        while now >= self._turn_at:
            # Built anew before it is published: eviction reads from another thread.
            self._previous, self._current = self._current, bytearray(len(self._current))
            self._turn_at = max(self._turn_at + self._period, now - 2 * self._period)
