"""One start, as the node saw it: which chunks were needed first, when, and who had to wait for what."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from typing import Literal

from fastpull.cache.wire import TouchedRange, Trace
from fastpull.fuse_client.fetch.fetcher import Waited
from fastpull.image.chunk_map import ChunkMap

EndedBy = Literal["settled", "limit", "unmount"]

MIN_BYTES = 1 << 20  # less than this is a look at /etc/passwd during the pull, not yet the start
MAX_WAITS = 20_000  # ranges kept for the report; a trace itself has no more chunks than the chain


class Recorder:
    """Collects one trace. A touch costs 0.3 us and 8 bytes, and happens once for each chunk."""

    def __init__(self, chain_id: str, pieces: ChunkMap, clock: Callable[[], float] = time.monotonic) -> None:
        self.waits: list[TouchedRange] = []
        self.touched_bytes = 0
        self.first_touch: float | None = None
        self.last_touch = 0.0
        self._chain_id = chain_id
        self._pieces = pieces
        self._clock = clock
        self._mounted_at = clock()
        self._started_at = time.time()
        self._indexes = array("I")
        self._at_ms = array("I")
        self._open = True

    def touched(self, index: int) -> None:
        if not self._open:
            return
        now = self._clock()
        if self.first_touch is None:
            self.first_touch = now
        self.last_touch = now
        self.touched_bytes += self._pieces.size_at(index)
        self._indexes.append(index)
        self._at_ms.append(int((now - self._mounted_at) * 1000))

    def waited(self, offset: int, length: int, waited: Waited) -> None:
        if not self._open or len(self.waits) >= MAX_WAITS:
            return
        total = waited.queue + waited.fetch + waited.inflate
        at = self._clock() - self._mounted_at - total
        self.waits.append(
            TouchedRange(
                offset=offset,
                length=length,
                at_ms=max(0, int(at * 1000)),
                waited_us=int(total * 1e6),
                cause=_cause(waited),
            )
        )

    def verdict(self, *, settle_seconds: float, max_seconds: float) -> EndedBy | None:
        """Whether the start is over: it has begun in earnest, and nothing new was touched for a while."""
        if self.first_touch is None:
            return None
        now = self._clock()
        if now - self.first_touch >= max_seconds:
            return "limit"
        if self.touched_bytes >= MIN_BYTES and now - self.last_touch >= settle_seconds:
            return "settled"
        return None

    def finish(self, ended_by: EndedBy, *, node: str) -> Trace | None:
        """End the recording. None = nothing was touched."""
        self._open = False
        if self.first_touch is None:
            return None
        first: dict[str, int] = {}  # one chunk may stand at several places of the device
        for index, at_ms in zip(self._indexes, self._at_ms, strict=True):
            first.setdefault(self._pieces.id_at(index).hex(), at_ms)
        return Trace(
            chain_id=self._chain_id,
            node=node,
            started_at=self._started_at,
            seconds=round(self.last_touch - self._mounted_at, 3),
            chunks=tuple(first),
            at_ms=tuple(first.values()),
            ended_by=ended_by,
        )


def _cause(waited: Waited) -> Literal["fetch", "queue", "inflate"]:
    if waited.fetch >= max(waited.queue, waited.inflate):
        return "fetch"
    return "queue" if waited.queue >= waited.inflate else "inflate"
