"""One change of the chunk store's index: everything that happens together, accounts included."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator
from typing import Self

import lmdb

from fastpull.cache.chunk_index import ChunkIndex, Freed, Place
from fastpull.cache.digest import ChunkId
from fastpull.cache.environment import translated
from fastpull.cache.errors import ChunkCorruptError
from fastpull.cache.eviction import Candidate, choose
from fastpull.cache.records import (
    FREED,
    FREED_KEY,
    PLACE,
    PLACE_KEY,
    SEGMENT_KEY,
    TICK,
    WHOLE_FILE,
    Accounts,
    Entry,
    Segment,
    footprint,
    pack_accounts,
    pack_entry,
    pack_segment,
    unpack_accounts,
    unpack_entry,
    unpack_segment,
)

USE_GRAIN_SECONDS = 60.0
"""A use so soon after the recorded one is not recorded: a busy chunk costs one small write a minute at most."""

VICTIMS_PER_CHANGE = 1024  # so that other writers wait for milliseconds
VICTIMS_WHEN_FULL = 64  # so that the commit itself finds room


class Change:
    """One write transaction: commits when its block ends, aborts when it raises."""

    def __init__(self, index: ChunkIndex, now: float) -> None:
        self._at = index
        self._now = int(now * 1e6)
        self._freed_counter = 0
        self._is_dirty = False

    def __enter__(self) -> Self:
        with translated(self._at.path):
            self.transaction = self._at.environment.begin(write=True)
        self.number = self.transaction.id()
        self.durable = self.number - 2  # commits that no power loss undoes: all but the last
        try:
            self._before = unpack_accounts(self.transaction.get(b"accounts", db=self._at.meta))
        except BaseException:
            self.transaction.abort()
            raise
        self.live_bytes, self._chunks, self._next_segment, self._last_tick, self.freed_bytes = self._before
        self._segments: dict[int, Segment] = {}
        self._known: dict[int, Segment] = {}  # as committed
        self._gone: list[tuple[int, int]] = []  # segment and offset of what was removed
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _trace: object) -> None:
        with translated(self._at.path, with_system_calls=True):
            if exc is not None:
                self.transaction.abort()
                if isinstance(exc, lmdb.Error):
                    raise exc  # again, to be translated
                return
            try:
                self._finish()
                if not self._is_dirty:
                    self.transaction.abort()
                    return
                if self._at.marker is not None:
                    self._at.marker.set()
                self.transaction.commit()
                self.durable = self.number - 1
            except BaseException:
                self.transaction.abort()
                raise

    def find(self, chunk: ChunkId) -> Entry | None:
        """An unreadable entry counts as absent, so that it can be replaced."""
        data = self.transaction.get(chunk, db=self._at.index)
        if data is None:
            return None
        try:
            return unpack_entry(chunk, data)
        except ChunkCorruptError:
            return None

    def add(self, chunk: ChunkId, entry: Entry) -> int:
        """Add a chunk that is not there. Return the bytes that it takes of the quota."""
        entry = entry._replace(tick=self._tick())
        self._place(chunk, entry)
        self._put(TICK.pack(entry.tick), chunk, append=True, db=self._at.uses)
        self._chunks += 1
        self.live_bytes += footprint(entry.length)
        return footprint(entry.length)

    def move(self, place: Place, new: Entry | None) -> None:
        """The bytes at ``place`` have been copied to ``new``, or can not be read. Uses stay."""
        known = self.find(place.chunk)
        if known is None or (known.segment, known.offset) != (place.segment, place.offset):
            self._leave(place.segment, place.offset, place.length)  # nobody's, after damage to the index
            known = None
        if new is None and known is not None:
            self.remove(place.chunk)
        elif new is not None and known is not None:
            self._leave(known.segment, known.offset, known.length)
            self._place(place.chunk, new._replace(tick=known.tick))
        elif new is not None:
            self.waste(new)

    def remove(self, chunk: ChunkId) -> int:
        """Return the bytes freed."""
        known = self.find(chunk)
        if known is None:
            self._delete(chunk, db=self._at.index)
            return 0
        self._leave(known.segment, known.offset, known.length)
        self._delete(chunk, db=self._at.index)
        self._delete(TICK.pack(known.tick), db=self._at.uses)
        self._chunks = max(0, self._chunks - 1)
        self.live_bytes = max(0, self.live_bytes - footprint(known.length))
        return footprint(known.length)

    def use(self, chunks: Iterable[ChunkId]) -> None:
        """Mark chunks as used now; absent ones are fine."""
        for chunk in sorted(chunks):  # neighbours in the index share pages
            known = self.find(chunk)
            if known is None or self._now - known.tick < USE_GRAIN_SECONDS * 1e6:
                continue
            self._delete(TICK.pack(known.tick), db=self._at.uses)
            used = known._replace(tick=self._tick())
            self._put(chunk, pack_entry(used), db=self._at.index)
            self._put(TICK.pack(used.tick), chunk, append=True, db=self._at.uses)

    def evict(
        self,
        target: int,
        *,
        in_use: Callable[[ChunkId], bool],
        never: Container[ChunkId] = frozenset(),
        limit: int = VICTIMS_PER_CHANGE,
    ) -> int:
        """One step towards ``target`` live bytes. Return the bytes freed; 0 = there or as near as possible."""
        need = self.live_bytes - max(target, 0)
        if need <= 0:
            return 0
        choice = choose(self._oldest_first(), need, in_use=in_use, never=never, limit=limit)
        freed = sum(self.remove(victim.chunk) for victim in choice.victims)
        # What is in use is used now: without this every eviction would walk past the same old chunks again.
        self.use(choice.passed_over)
        return freed

    def segment(self, number: int) -> Segment | None:
        if number not in self._segments:
            data = self.transaction.get(SEGMENT_KEY.pack(number), db=self._at.segments)
            if data is None:
                return None
            self._segments[number] = self._known[number] = unpack_segment(data)
        return self._segments[number]

    def all_segments(self) -> dict[int, Segment]:
        return self._at.all_segments(self.transaction) | self._segments

    def segment_count(self) -> int:
        return self.transaction.stat(self._at.segments)["entries"]

    def freed_count(self) -> int:
        return self.transaction.stat(self._at.freed)["entries"]

    def new_segment(self) -> int:
        number = self._next_segment
        self._next_segment += 1
        self._segments[number] = Segment()
        return number

    def forget_freed(self, ranges: Iterable[Freed]) -> None:
        """These have been given back."""
        for freed in ranges:
            if self._delete(freed.key, db=self._at.freed):
                self.freed_bytes -= freed.length

    def waste(self, entry: Entry) -> None:
        """The place of ``entry`` was written in vain. It counts as committed, so that nobody writes there again."""
        segment = self.segment(entry.segment) or Segment()
        end = entry.offset + entry.length
        self._segments[entry.segment] = segment._replace(end=max(segment.end, end))
        self.free(entry.segment, entry.offset, end)

    def seal(self, number: int) -> None:
        self._segments[number] = (self.segment(number) or Segment())._replace(is_sealed=True)

    def mark_synced(self, number: int, end: int) -> None:
        segment = self.segment(number)
        if segment is not None and segment.synced < end:
            self._segments[number] = segment._replace(synced=end)

    def free(self, segment: int, start: int, end: int) -> None:
        """Give the range back to the file system once nobody can look at it any more."""
        freed = Freed(FREED_KEY.pack(self.number, self._freed_counter), segment, start, end)
        self._freed_counter += 1
        self._put(freed.key, FREED.pack(segment, start, end), db=self._at.freed)
        self.freed_bytes += freed.length

    def boot(self) -> bytes | None:
        return self.transaction.get(b"boot", db=self._at.meta)

    def set_boot(self, boot: bytes) -> None:
        self._put(b"boot", boot, db=self._at.meta)

    def _put(self, key: bytes, value: bytes, *, db: lmdb._Database, append: bool = False) -> None:
        self._is_dirty = True
        self.transaction.put(key, value, append=append, db=db)

    def _delete(self, key: bytes, *, db: lmdb._Database) -> bool:
        self._is_dirty = True
        return self.transaction.delete(key, db=db)

    def _tick(self) -> int:
        self._last_tick = max(self._now, self._last_tick + 1)
        return self._last_tick

    def _place(self, chunk: ChunkId, entry: Entry) -> None:
        self._put(chunk, pack_entry(entry), db=self._at.index)
        key = PLACE_KEY.pack(entry.segment, entry.offset)
        self._put(key, PLACE.pack(entry.length, chunk), db=self._at.places)
        segment = self.segment(entry.segment) or Segment()
        end = max(segment.end, entry.offset + entry.length)
        self._segments[entry.segment] = segment._replace(end=end, live_bytes=segment.live_bytes + entry.length)

    def _leave(self, number: int, offset: int, length: int) -> None:
        self._delete(PLACE_KEY.pack(number, offset), db=self._at.places)
        segment = self.segment(number)
        if segment is not None:
            self._segments[number] = segment._replace(live_bytes=max(0, segment.live_bytes - length))
            self._gone.append((number, offset))

    def _oldest_first(self) -> Iterator[Candidate]:
        for data in self.transaction.cursor(self._at.uses).iternext(keys=False):
            chunk = ChunkId(data)
            known = self.find(chunk)
            if known is not None:
                yield Candidate(chunk, footprint(known.length))

    def _finish(self) -> None:
        self._free_gaps()
        for number, segment in self._segments.items():
            if segment == self._known.get(number):
                continue
            key = SEGMENT_KEY.pack(number)
            if segment.is_sealed and not segment.live_bytes:
                self.free(number, 0, WHOLE_FILE)
                self._delete(key, db=self._at.segments)
            else:
                self._put(key, pack_segment(segment), db=self._at.segments)
        accounts = Accounts(
            self.live_bytes, self._chunks, self._next_segment, self._last_tick, max(0, self.freed_bytes)
        )
        if accounts != self._before:
            self._put(b"accounts", pack_accounts(accounts), db=self._at.meta)

    def _free_gaps(self) -> None:
        """Each removed chunk leaves a gap that reaches from the live chunk before it to the one behind it."""
        done = (0, 0)  # segment and end of the gap found last
        for segment, offset in sorted(self._gone):
            if (segment, offset) < done:
                continue
            start, end = self._gap(segment, offset)
            self.free(segment, start, end)
            done = (segment, end)

    def _gap(self, segment: int, offset: int) -> tuple[int, int]:
        cursor = self.transaction.cursor(self._at.places)
        known = self.segment(segment)
        start, end = 0, known.end if known else offset
        found = cursor.set_range(PLACE_KEY.pack(segment, offset))
        if found and (place := PLACE_KEY.unpack(cursor.key()))[0] == segment:
            end = place[1]
        if cursor.prev() if found else cursor.last():
            number, before = PLACE_KEY.unpack(cursor.key())
            if number == segment:
                start = before + PLACE.unpack(cursor.value())[0]
        return start, end
