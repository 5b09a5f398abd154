"""One start, as the node saw it: which chunks were needed first, when, and who had to wait for what."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from typing import Literal

from fastpull.cache.digest import ChunkId
from fastpull.cache.wire import Trace
from fastpull.fuse_client.fetch.queue import Lane
from fastpull.fuse_client.fetch.waited import Waited
from fastpull.fuse_client.start_record import Fetched, StartRecord, Wait
from fastpull.image.chunk_map import ChunkMap

EndedBy = Literal["settled", "limit", "unmount"]

MIN_BYTES = 1 << 20  # less than this is a look at /etc/passwd during the pull, not yet the start
MAX_WAITS = 20_000  # kept for the report, 2 MB; a trace itself has no more chunks than the chain
MAX_FETCHED = 200_000  # chunks whose use is followed, 20 MB
SHORT_WAIT_SECONDS = 200e-6  # a read of local bytes that takes less did not wait for the disk


class Recorder:
    """Collects one trace. A touch costs 0.3 us and 8 bytes, and happens once for each chunk."""

    def __init__(self, chain_id: str, pieces: ChunkMap, clock: Callable[[], float] = time.monotonic) -> None:
        self.waits: list[Wait] = []
        self.waits_left_out = 0
        self.touched_bytes = 0
        self.first_touch: float | None = None
        self.last_touch = 0.0
        self.started_at = time.time()
        self._chain_id = chain_id
        self._pieces = pieces
        self._clock = clock
        self._mounted_at = clock()
        self._indexes = array("I")
        self._at_ms = array("I")
        self._fetched: dict[ChunkId, tuple[int, int]] = {}  # received and content bytes
        self._by_lane = {lane: [0, 0, 0] for lane in Lane}  # chunks, received bytes, content bytes
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
        """A read is over that touched something for the first time, or found something missing."""
        if not self._open:
            return
        total = waited.queue + waited.fetch + waited.inflate + waited.disk
        if waited.disk and total < SHORT_WAIT_SECONDS:
            return
        if len(self.waits) >= MAX_WAITS:
            self.waits_left_out += 1
            return
        at = self._clock() - self._mounted_at - total
        parts = (waited.queue, waited.fetch, waited.inflate, waited.disk)
        self.waits.append(Wait(offset, length, max(0, int(at * 1e6)), *(round(part * 1e6) for part in parts)))

    def arrived(self, chunk: ChunkId, lane: Lane, received: int, content: int) -> None:
        """A chunk was fetched for this chain."""
        if not self._open:
            return
        counts = self._by_lane[lane]
        counts[0] += 1
        counts[1] += received
        counts[2] += content
        if len(self._fetched) < MAX_FETCHED:
            self._fetched[chunk] = received, content

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
            started_at=self.started_at,
            seconds=round(self.last_touch - self._mounted_at, 3),
            chunks=tuple(first),
            at_ms=tuple(first.values()),
            ended_by=ended_by,
        )

    def forget(self) -> None:
        """Give the memory back; what is observed from now on is not kept."""
        self._open = False
        self.waits = []
        self._fetched = {}
        self._indexes = array("I")
        self._at_ms = array("I")

    def record(self, ended_by: EndedBy | None, plan: Sequence[int] = ()) -> StartRecord:
        """What the report is made of, also while the start goes on (None). ``plan``: places in the chunk map."""
        pieces = self._pieces
        touched = {pieces.id_at(index) for index in self._indexes}
        planned = {pieces.id_at(index) for index in plan}
        vain = [sizes for chunk, sizes in self._fetched.items() if chunk not in touched]
        return StartRecord(
            chain_id=self._chain_id,
            started_at=self.started_at,
            ended_by=ended_by or "",
            indexes=self._indexes.tobytes(),
            offsets=array("Q", map(pieces.offset_at, self._indexes)).tobytes(),
            sizes=array("I", map(pieces.size_at, self._indexes)).tobytes(),
            at_ms=self._at_ms.tobytes(),
            foreseen=bytes(pieces.id_at(index) in planned for index in self._indexes),
            waits=tuple(self.waits),
            waits_left_out=self.waits_left_out,
            planned_chunks=len(plan),
            planned_bytes=sum(map(pieces.size_at, plan)),
            fetched=tuple(
                Fetched(lane=lane.name.lower(), chunks=chunks, received_bytes=received, content_bytes=content)
                for lane, (chunks, received, content) in self._by_lane.items()
            ),
            vain_chunks=len(vain),
            vain_bytes=sum(content for _, content in vain),
            vain_received_bytes=sum(received for received, _ in vain),
            chunks=len(pieces),
            content_bytes=sum(map(pieces.size_at, range(len(pieces)))),
        )
