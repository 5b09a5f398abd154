"""The chunk store on disk: an LMDB index over segment files.

Why the bytes do not lie in LMDB itself. Measured side by side on the same machine, 64 KiB chunks: values in LMDB
took 280 to 350 MB/s in without any flush, falling to 170 to 240 MB/s once evictions had fragmented its free
list; appending to segments takes 400 to 730 MB/s with every index commit flushed. LMDB's file stayed 12 to 18 %
above the live bytes and never shrinks; segments and index stayed within 4 to 10 % of them (quota 512 MiB, batches of
8 MiB, a tenth of the chunks used again), because holes return every freed block.

What survives. A killed process: everything committed, nothing else, accounts exact. A power loss: index commits are
flushed before they count, but the chunks' bytes only by ``sync``; the next open forgets, exactly, the chunks whose
bytes were not known to be on disk. So nothing damaged is left, and what must be found again is told to the world only
after ``sync``.

Several processes share a store. Each appends to a segment of its own, so that only the index is ever waited for. Holes
are punched when no reader, in any process, is older than the eviction. After ``fork`` a child opens the store anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

from fastpull.cache.chunk_index import ChunkIndex, Freed
from fastpull.cache.digest import ChunkId
from fastpull.cache.environment import translated
from fastpull.cache.errors import ChunkCorruptError, ChunkMissingError, IndexDamagedError, StoreFullError
from fastpull.cache.frames import MAX_CHUNK_BYTES
from fastpull.cache.index_change import VICTIMS_WHEN_FULL, Change
from fastpull.cache.lmdb_view import LmdbView
from fastpull.cache.power_loss import UnflushedMarker, boot_id, sync_directory
from fastpull.cache.records import (
    WHOLE_FILE,
    footprint,
    unpack_accounts,
)
from fastpull.cache.resident import release_mapping
from fastpull.cache.segment_writer import SegmentWriter
from fastpull.cache.segments import Segments
from fastpull.cache.store import ChunkView, StoredChunk, StoreStats

log = logging.getLogger(__name__)

_GiB = 1 << 30
_MiB = 1 << 20
_EVICTED_AT_ONCE = 64 * _MiB  # or a twentieth of the quota: what is evicted and not yet given back is on disk twice
_TOUCH_LIMIT = 200_000  # uses kept in memory; more are forgotten until the next flush
_IDS_PER_LOOK = 4096
_MOVED_AT_ONCE = 256
_HOLES_PER_PUT = 32
_HOLES_AT_ONCE = 1024
_ALL = 1 << 30
_ROOM_AFTER_FULL = 64 * _MiB


def _nothing_in_use(_chunk: ChunkId) -> bool:
    return False


class LmdbChunkStore:
    """``ChunkStore`` in a directory, for any number of threads and processes."""

    def __init__(self, path: Path, index: ChunkIndex, segments: Segments, quota_bytes: int) -> None:
        self.path = path
        self.clock: Callable[[], float] = time.time
        self._index = index
        self._segments = segments
        self._quota = quota_bytes
        self._low_water = quota_bytes - min(quota_bytes // 20, _EVICTED_AT_ONCE)
        self._in_use: Callable[[ChunkId], bool] = _nothing_in_use
        self._touched: set[ChunkId] = set()
        self._given_back: list[Freed] = []
        self._most_freed = quota_bytes // 50
        self._writer = SegmentWriter(segments, self._change)
        self._most_segments = 2 * quota_bytes // segments.segment_bytes + 8
        self._lock = threading.RLock()  # this process's writers
        with self._change() as change:
            self._recover(change)

    @classmethod
    def open(cls, path: Path, *, quota_bytes: int, durable: bool = True) -> Self:
        """Open or create the store in the directory ``path``. Raise ``CacheError`` or ``StoreVersionError``.

        ``durable`` flushes the index with each commit, 5 to 10 ms; right where batches are large and what is lost is
        dear. Without, a batch of 1 MiB costs 1 ms instead, but a power loss between a commit and the next ``sync``
        empties the store. Processes that share a store open it alike.
        """
        marker = UnflushedMarker(path)
        with translated(path, with_system_calls=True):
            path.mkdir(parents=True, exist_ok=True)
            with (path / "opening").open("wb") as turn:
                fcntl.flock(turn, fcntl.LOCK_EX)
                if marker.tells_of_power_loss():
                    _wipe(path, "it was being written when the power went")
                    marker.clear()
                try:
                    return cls._open(path, quota_bytes, None if durable else marker)
                except IndexDamagedError as exc:
                    _wipe(path, f"its index is damaged ({exc})")
                    return cls._open(path, quota_bytes, None if durable else marker)

    @classmethod
    def _open(cls, path: Path, quota_bytes: int, marker: UnflushedMarker | None) -> Self:
        # An index is one or two hundredths of the chunks; of single bytes, as large as the quota says it may be.
        index = ChunkIndex.open(path / "index", map_bytes=2 * quota_bytes + _GiB, marker=marker)
        try:
            segments = Segments(path, _segment_bytes(quota_bytes), flushes_early=marker is None)
            return cls(path, index, segments, quota_bytes)
        except BaseException:
            index.environment.close()
            raise

    def view(self) -> AbstractContextManager[ChunkView]:
        return LmdbView(self._index, self._segments)

    def has(self, chunks: Sequence[ChunkId]) -> list[bool]:
        with (
            self._translated(),
            self._index.read() as transaction,
        ):
            find = transaction.get
            return [find(chunk) is not None for chunk in chunks]

    def get(self, chunk: ChunkId) -> StoredChunk:
        with self._translated(), LmdbView(self._index, self._segments) as view:
            stored = view.get(chunk)
        if stored is None:
            raise ChunkMissingError(chunk)
        return stored

    def put_many(self, chunks: Iterable[tuple[ChunkId, StoredChunk]]) -> int:
        batch = dict(chunks)
        lengths = [len(stored.data) for stored in batch.values()]
        if lengths and max(lengths) > MAX_CHUNK_BYTES:
            raise ValueError(f"a chunk has at most {MAX_CHUNK_BYTES} bytes")
        total = sum(map(footprint, lengths))
        if total > self._quota:
            raise StoreFullError(f"{self.path}: a batch of {total} bytes; the quota is {self._quota}")
        with self._lock:
            for _ in range(3):
                try:
                    return self._put(batch)
                except StoreFullError:
                    if not self._make_room(total + _ROOM_AFTER_FULL, batch):
                        raise
            return self._put(batch)

    def touch(self, chunks: Iterable[ChunkId]) -> None:
        if len(self._touched) < _TOUCH_LIMIT:
            self._touched.update(chunks)

    def drop(self, chunks: Iterable[ChunkId]) -> int:
        with self._lock, self._change() as change:
            freed = sum(change.remove(chunk) for chunk in chunks)
        self._return_space()
        return freed

    def evict(self, target_bytes: int, *, in_use: Callable[[ChunkId], bool]) -> int:
        freed = 0
        while True:
            with self._lock, self._change() as change:
                change.use(self._take_touched())
                step = change.evict(target_bytes, in_use=in_use)
            if not step:
                return freed
            freed += step
            self._return_space()

    def protect(self, in_use: Callable[[ChunkId], bool]) -> None:
        """What the evictions of ``put_many`` take last."""
        self._in_use = in_use

    def flush(self) -> None:
        """Record the uses that ``touch`` collected, and give back what could not be yet. Call it now and then."""
        with self._lock, self._change() as change:
            change.use(self._take_touched())
            change.forget_freed(self._take_given_back())
            is_due = change.freed_count() > 0
        if is_due:
            self._return_space()
        self._segments.forget_removed()

    def sync(self) -> None:
        """Make every chunk committed up to now, by whatever process, survive a power loss."""
        with self._translated():
            with self._index.read() as transaction:
                rows = self._index.all_segments(transaction)
            unsynced = {number: segment.end for number, segment in rows.items() if segment.synced < segment.end}
            for number in unsynced:
                self._segments.sync(number)
            sync_directory(self.path)
        with self._lock:
            with self._change() as change:
                for number, end in unsynced.items():
                    change.mark_synced(number, end)
            with self._translated():
                self._index.flush()

    def ids(self) -> Iterator[ChunkId]:
        """Every chunk's id, in no promised order; changes meanwhile may or may not show.

        Looks again for every few thousand, so that a slow caller holds no transaction.
        """
        after = b""
        while True:
            with (
                self._translated(),
                self._index.read() as transaction,
            ):
                cursor = transaction.cursor()
                if not (cursor.set_range(after) if after else cursor.first()):
                    return
                keys = [key for key, _ in zip(cursor.iternext(values=False), range(_IDS_PER_LOOK), strict=False)]
            yield from (ChunkId(key) for key in keys)
            after = keys[-1] + b"\0"

    def read_ahead(self, chunks: Sequence[ChunkId]) -> int:
        asked = 0
        for first in range(0, len(chunks), _IDS_PER_LOOK):
            with self._translated(), LmdbView(self._index, self._segments) as view:
                asked += view.read_ahead(chunks[first : first + _IDS_PER_LOOK])
        return asked

    def stats(self) -> StoreStats:
        with self._translated():
            with self._index.read() as transaction:
                accounts = unpack_accounts(transaction.get(b"accounts", db=self._index.meta))
            index_bytes = (self._index.path / "data.mdb").stat().st_blocks * 512
            file_bytes = index_bytes + self._segments.allocated()
        return StoreStats(accounts.chunks, accounts.live_bytes, file_bytes, self._quota)

    def release_resident(self) -> None:
        """Take the mapped index out of this process's resident set; it stays in the page cache."""
        release_mapping(self._index.path / "data.mdb")

    def close(self) -> None:
        """No view may be open."""
        with self._lock:
            self._writer.close()
            self._segments.close()
            self._index.environment.close()

    def _translated(self) -> AbstractContextManager[None]:
        return translated(self.path, with_system_calls=True)

    def _change(self) -> Change:
        return Change(self._index, self.clock())

    def _take_touched(self) -> set[ChunkId]:
        taken, self._touched = self._touched, set()
        return taken

    def _put(self, chunks: Mapping[ChunkId, StoredChunk]) -> int:
        there = self.has(list(chunks))
        new = [chunk for chunk, known in zip(chunks, there, strict=True) if not known]
        used = self._take_touched() | (chunks.keys() - new)
        added = 0
        with self._translated(), self._writer.batch() as batch:
            self._index.reserve()
            placed = batch.append((chunk, chunks[chunk]) for chunk in new)
            with self._change() as change:
                change.use(used)
                for chunk, entry in placed.items():
                    if change.find(chunk) is None:
                        added += change.add(chunk, entry)
                    else:  # another process was faster
                        change.waste(entry)
                batch.seal_full(change)
                while change.live_bytes > self._quota:
                    if not change.evict(self._low_water, in_use=self._in_use, never=chunks):
                        break
                change.forget_freed(self._take_given_back())
                crowded = change.segment_count() > self._most_segments
                behind = change.freed_bytes > self._most_freed
        # A power loss may undo the last commit, and must not bring back a chunk whose bytes are gone.
        self._give_back(change.durable, _ALL if behind else _HOLES_PER_PUT)
        if crowded:
            self._compact()
        return added

    def _compact(self) -> None:
        """Move some chunks out of the emptiest segment. Else one busy chunk in each would keep ever more files."""
        with self._translated(), self._index.read() as transaction:
            rows = self._index.all_segments(transaction)
            sealed = [(segment.live_bytes, number) for number, segment in rows.items() if segment.is_sealed]
            if not sealed:
                return
            _, emptiest = min(sealed)
            places = self._index.places_behind(transaction, emptiest, 0)[:_MOVED_AT_ONCE]
        moving: list[tuple[ChunkId, StoredChunk]] = []
        for place in places:
            with contextlib.suppress(ChunkMissingError, ChunkCorruptError):
                moving.append((place.chunk, self.get(place.chunk)))
        with self._translated(), self._writer.batch() as batch:
            placed = batch.append(moving)
            with self._change() as change:
                for place in places:
                    change.move(place, placed.get(place.chunk))
                batch.seal_full(change)

    def _make_room(self, size: int, never: Mapping[ChunkId, StoredChunk]) -> int:
        freed = 0
        with contextlib.suppress(StoreFullError):
            while freed < size:
                with self._change() as change:
                    target = change.live_bytes - size
                    step = change.evict(target, in_use=self._in_use, never=never, limit=VICTIMS_WHEN_FULL)
                freed += step
                if not step:
                    break
            self._return_space()
        return freed

    def _return_space(self) -> None:
        """Give back all that was freed so far. Only what is flushed: see ``_put``."""
        with self._translated():
            durable = self._index.flush()
            while self._give_back(durable, _HOLES_AT_ONCE):
                with self._lock, self._change() as change:
                    change.forget_freed(self._take_given_back())

    def _give_back(self, durable: int, limit: int) -> int:
        """Holding no transaction: a hole takes 40 us, but milliseconds where the disk is busy."""
        with self._translated():
            ready = self._index.ready_to_give_back(durable, limit)
            holes: dict[int, list[tuple[int, int]]] = {}
            for freed in ready:
                holes.setdefault(freed.segment, []).append((freed.start, freed.end))
            for number, ranges in holes.items():
                if any(end == WHOLE_FILE for _, end in ranges):
                    self._segments.remove(number)
                else:
                    self._segments.free(number, ranges)
        self._given_back.extend(ready)  # until a commit forgets them; given back twice does no harm
        return len(ready)

    def _take_given_back(self) -> list[Freed]:
        taken, self._given_back = self._given_back, []
        return taken

    def _recover(self, change: Change) -> None:
        """Forget what a power loss may have taken, and give back what killed processes wrote and did not commit."""
        known = change.all_segments()
        boot = boot_id()
        if change.boot() != boot:
            for number, segment in known.items():
                if segment.synced < segment.end:
                    for place in self._index.places_behind(change.transaction, number, segment.synced):
                        change.remove(place.chunk)
            change.set_boot(boot)
        self._segments.sweep({number: segment.end for number, segment in known.items() if not segment.is_sealed}, known)


def _wipe(path: Path, reason: str) -> None:
    log.warning("%s: starting with an empty store, %s", path, reason)
    shutil.rmtree(path / "index", ignore_errors=True)
    for segment in path.glob("*.chunks"):
        segment.unlink(missing_ok=True)


def _segment_bytes(quota_bytes: int) -> int:
    """Large enough to be few, small enough that a tiny store is more than one. Sparse, so it costs no space."""
    return max(16 * _MiB, min(_GiB, quota_bytes // 8))
