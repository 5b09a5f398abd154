"""The chunk store in LMDB."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

import lmdb

from fastpull.cache.digest import ChunkId
from fastpull.cache.environment import open_environment, translated
from fastpull.cache.errors import ChunkCorruptError, ChunkMissingError, StoreFullError
from fastpull.cache.eviction import Candidate, choose
from fastpull.cache.records import (
    ENCODINGS,
    ENTRY,
    ENTRY_VERSION,
    ROW,
    TICK,
    Accounts,
    Entry,
    check_format,
    footprint,
    pack_accounts,
    pack_entry,
    pack_format,
    unpack_accounts,
    unpack_entry,
)
from fastpull.cache.store import ChunkView, StoredChunk, StoreStats

USE_GRAIN_SECONDS = 60.0  # a use so soon after the recorded one is not recorded
_LOW_WATER = 0.95
_TOUCH_LIMIT = 200_000  # uses kept in memory; more are forgotten until the next flush
_PER_TRANSACTION = 1024  # victims, so that other writers wait for milliseconds
_IDS_PER_LOOK = 4096
_FREED_AT_ONCE = 64 << 20  # after MDB_MAP_FULL or ENOSPC

_new_tuple = tuple.__new__


def _nothing_in_use(_chunk: ChunkId) -> bool:
    return False


class LmdbView:
    """A read transaction. ``get`` copies nothing; its buffers are valid until the ``with`` block ends."""

    __slots__ = ("_data", "_find", "_index", "_transaction")

    def __init__(self, environment: lmdb.Environment, index: lmdb._Database, data: lmdb._Database) -> None:
        self._transaction = environment.begin(buffers=True)
        self._find = self._transaction.get
        self._index = index
        self._data = data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._transaction.abort()

    def get(self, chunk: ChunkId) -> StoredChunk | None:
        """Raise ``ChunkCorruptError`` where the record's parts contradict each other."""
        entry = self._find(chunk, None, self._index)
        if entry is None:
            return None
        try:
            version, encoding, length, size, _, row = ENTRY.unpack(entry)
            data = self._find(row, None, self._data)
            if version == ENTRY_VERSION and data is not None and len(data) == length:
                # Twice as fast as the constructor of a NamedTuple, on the hottest line of the node.
                return _new_tuple(StoredChunk, (ENCODINGS[encoding], size, data))
        except Exception as exc:  # whatever a damaged page does
            raise ChunkCorruptError(chunk, f"its record can not be read ({exc})") from exc
        if unpack_entry(chunk, entry) is None:
            return None  # of a newer version
        raise ChunkCorruptError(chunk, "its data and its index entry contradict each other")


class LmdbChunkStore:
    """``ChunkStore`` on one LMDB environment, for any number of threads and processes."""

    def __init__(self, environment: lmdb.Environment, path: Path, quota_bytes: int, clock: Callable[[], float]) -> None:
        self._environment = environment
        self._path = path
        self._quota = quota_bytes
        self._clock = clock
        self._in_use: Callable[[ChunkId], bool] = _nothing_in_use
        self._touched: set[ChunkId] = set()
        self._lock = threading.Lock()  # this process's writers queue here, not inside LMDB
        with translated(path), environment.begin(write=True) as transaction:
            self._meta = environment.open_db(b"meta", transaction)
            self._index = environment.open_db(b"index", transaction)
            self._data = environment.open_db(b"data", transaction)
            self._uses = environment.open_db(b"uses", transaction)
            found = transaction.get(b"format", db=self._meta)
            if found is None:
                transaction.put(b"format", pack_format(), db=self._meta)
            else:
                check_format(found, str(path))

    @classmethod
    def open(cls, path: Path, *, quota_bytes: int, clock: Callable[[], float] = time.time) -> Self:
        """Open or create the store in the directory ``path``. Raise ``CacheError`` or ``StoreVersionError``."""
        environment = open_environment(path, map_bytes=quota_bytes * 2 + (256 << 20), databases=8)
        try:
            return cls(environment, path, quota_bytes, clock)
        except BaseException:
            environment.close()
            raise

    def view(self) -> AbstractContextManager[ChunkView]:
        return LmdbView(self._environment, self._index, self._data)

    def has(self, chunks: Sequence[ChunkId]) -> list[bool]:
        with translated(self._path), self._environment.begin(self._index) as transaction:
            find = transaction.get
            return [find(chunk) is not None for chunk in chunks]

    def get(self, chunk: ChunkId) -> StoredChunk:
        with self.view() as view:
            found = view.get(chunk)
            if found is None:
                raise ChunkMissingError(chunk)
            return StoredChunk(found.encoding, found.size, bytes(found.data))

    def put_many(self, chunks: Iterable[tuple[ChunkId, StoredChunk]]) -> int:
        batch = dict(chunks)
        total = sum(footprint(len(stored.data)) for stored in batch.values())
        if total > self._quota:
            raise StoreFullError(f"{self._path}: a batch of {total} bytes; the quota is {self._quota}")
        with self._lock:
            for _ in range(3):
                try:
                    return self._put(batch)
                except StoreFullError:
                    if not self._make_room(total + _FREED_AT_ONCE, never=batch):
                        raise
            return self._put(batch)

    def touch(self, chunks: Iterable[ChunkId]) -> None:
        if len(self._touched) < _TOUCH_LIMIT:
            self._touched.update(chunks)

    def drop(self, chunks: Iterable[ChunkId]) -> int:
        with self._lock, _Change(self) as change:
            return sum(change.remove(chunk) for chunk in chunks)

    def evict(self, target_bytes: int, *, in_use: Callable[[ChunkId], bool]) -> int:
        freed = 0
        while True:
            with self._lock, _Change(self) as change:
                change.touch(self._take_touched())
                step = change.evict(target_bytes, in_use=in_use, never={})
            if not step:
                return freed
            freed += step

    def protect(self, in_use: Callable[[ChunkId], bool]) -> None:
        """What the evictions of ``put_many`` take last."""
        self._in_use = in_use

    def flush(self) -> None:
        """Record the uses that ``touch`` collected."""
        if self._touched:
            with self._lock, _Change(self) as change:
                change.touch(self._take_touched())

    def sync(self) -> None:
        """Make every commit up to now survive a power loss."""
        with translated(self._path):
            self._environment.sync(True)

    def ids(self) -> Iterator[ChunkId]:
        """Every chunk's id, in no promised order; changes meanwhile may or may not show.

        Looks again for every few thousand, so that a slow caller holds no transaction.
        """
        after = b""
        while True:
            with translated(self._path), self._environment.begin(self._index) as transaction:
                cursor = transaction.cursor()
                if not cursor.set_range(after):
                    return
                keys = [key for key, _ in zip(cursor.iternext(values=False), range(_IDS_PER_LOOK), strict=False)]
            yield from (ChunkId(key) for key in keys)
            after = keys[-1] + b"\0"

    def stats(self) -> StoreStats:
        with translated(self._path), self._environment.begin(self._meta) as transaction:
            accounts = unpack_accounts(transaction.get(b"accounts"))
        file_bytes = (self._path / "data.mdb").stat().st_blocks * 512
        return StoreStats(accounts.chunks, accounts.live_bytes, file_bytes, self._quota)

    def release_resident(self) -> None:
        """Drop the pages of the map from this process's resident set; they stay in the page cache."""

    def close(self) -> None:
        with self._lock:
            self._environment.close()

    def _take_touched(self) -> set[ChunkId]:
        taken, self._touched = self._touched, set()
        return taken

    def _put(self, batch: Mapping[ChunkId, StoredChunk]) -> int:
        with _Change(self) as change:
            change.touch(self._take_touched())
            added = 0
            for chunk, stored in batch.items():
                added += change.add(chunk, stored)
            while change.live_bytes > self._quota:
                target = int(self._quota * _LOW_WATER)
                if not change.evict(target, in_use=self._in_use, never=batch):
                    break
            return added

    def _make_room(self, size: int, never: Mapping[ChunkId, StoredChunk]) -> int:
        try:
            with _Change(self) as change:
                return change.evict(change.live_bytes - size, in_use=self._in_use, never=never)
        except StoreFullError:
            return 0


class _Change:
    """One write transaction: commits when its block ends, aborts when it raises."""

    def __init__(self, store: LmdbChunkStore) -> None:
        self._store = store
        self._index, self._data, self._uses = store._index, store._data, store._uses
        self._accounts = Accounts()

    def __enter__(self) -> Self:
        store = self._store
        self._now = int(store._clock() * 1e6)
        with translated(store._path):
            self._transaction = store._environment.begin(write=True)
            self._accounts = unpack_accounts(self._transaction.get(b"accounts", db=store._meta))
        self.live_bytes, self._chunks, self._next_row, self._last_tick = self._accounts
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _trace: object) -> None:
        with translated(self._store._path):
            if exc is not None:
                self._transaction.abort()
                if isinstance(exc, lmdb.Error | OSError):
                    raise exc
                return
            accounts = Accounts(self.live_bytes, self._chunks, self._next_row, self._last_tick)
            try:
                if accounts != self._accounts:
                    self._transaction.put(b"accounts", pack_accounts(accounts), db=self._store._meta)
                self._transaction.commit()
            except BaseException:
                self._transaction.abort()
                raise

    def add(self, chunk: ChunkId, stored: StoredChunk) -> int:
        """Return the bytes that are new; a chunk that is there already counts as used."""
        known = self._find(chunk)
        if known is not None:
            self._use(chunk, known)
            return 0
        row = ROW.pack(self._next_row)
        entry = Entry(stored.encoding, len(stored.data), stored.size, self._tick(), row)
        put = self._transaction.put
        put(chunk, pack_entry(entry), db=self._index)
        put(row, stored.data, append=True, db=self._data)
        put(TICK.pack(entry.tick), chunk, append=True, db=self._uses)
        self._next_row += 1
        self._chunks += 1
        size = footprint(entry.length)
        self.live_bytes += size
        return size

    def touch(self, chunks: Iterable[ChunkId]) -> None:
        for chunk in sorted(chunks):  # neighbours in the index share pages
            known = self._find(chunk)
            if known is not None:
                self._use(chunk, known)

    def remove(self, chunk: ChunkId) -> int:
        """Return the bytes freed."""
        known = self._find(chunk)
        if known is None:
            return 0
        delete = self._transaction.delete
        delete(chunk, db=self._index)
        delete(known.row, db=self._data)
        delete(TICK.pack(known.tick), db=self._uses)
        size = footprint(known.length)
        self._chunks -= 1
        self.live_bytes -= size
        return size

    def evict(self, target: int, *, in_use: Callable[[ChunkId], bool], never: Mapping[ChunkId, StoredChunk]) -> int:
        need = self.live_bytes - max(target, 0)
        if need <= 0:
            return 0
        choice = choose(self._oldest_first(), need, in_use=in_use, never=never, limit=_PER_TRANSACTION)
        freed = sum(self.remove(victim.chunk) for victim in choice.victims)
        # What is in use is used now: without this every eviction would walk past the same old chunks again.
        self.touch(choice.passed_over)
        return freed

    def _oldest_first(self) -> Iterator[Candidate]:
        for chunk in self._transaction.cursor(self._uses).iternext(keys=False):
            known = self._find(ChunkId(chunk))
            if known is not None:
                yield Candidate(ChunkId(chunk), footprint(known.length))

    def _find(self, chunk: ChunkId) -> Entry | None:
        entry = self._transaction.get(chunk, db=self._index)
        return None if entry is None else unpack_entry(chunk, entry)

    def _use(self, chunk: ChunkId, known: Entry) -> None:
        if self._now - known.tick < USE_GRAIN_SECONDS * 1e6:
            return
        self._transaction.delete(TICK.pack(known.tick), db=self._uses)
        used = known._replace(tick=self._tick())
        self._transaction.put(chunk, pack_entry(used), db=self._index)
        self._transaction.put(TICK.pack(used.tick), chunk, append=True, db=self._uses)

    def _tick(self) -> int:
        self._last_tick = max(self._now, self._last_tick + 1)
        return self._last_tick
