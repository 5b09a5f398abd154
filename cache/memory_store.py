"""The chunk store in memory: for tests, and for processes that keep nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

from fastpull.cache.digest import ChunkId
from fastpull.cache.errors import ChunkMissingError, StoreFullError
from fastpull.cache.eviction import Candidate, choose
from fastpull.cache.records import footprint
from fastpull.cache.store import ChunkPlace, ChunkView, Filling, StoredChunk, StoreStats

_LOW_WATER = 0.95


def _nothing_in_use(_chunk: ChunkId) -> bool:
    return False


class _Snapshot:
    def __init__(self, chunks: dict[ChunkId, StoredChunk]) -> None:
        self._chunks = chunks
        self._found: list[bytes | memoryview] = []

    def find(self, chunk: ChunkId) -> ChunkPlace | None:
        """``segment`` is where in ``_found`` the bytes are."""
        stored = self._chunks.get(chunk)
        if stored is None:
            return None
        self._found.append(stored.data)
        return ChunkPlace(stored.encoding, stored.size, len(stored.data), len(self._found) - 1, 0)

    def fill(self, fillings: Sequence[Filling], *, wait: bool = True) -> bool:  # noqa: ARG002 - nothing to wait for
        for place, skip, buffer in fillings:
            buffer[:] = self._found[place.segment][skip : skip + len(buffer)]
        return True

    def room(self, length: int) -> memoryview:
        return memoryview(bytearray(length))

    def get(self, chunk: ChunkId) -> StoredChunk | None:
        return self._chunks.get(chunk)


class MemoryChunkStore:
    """``ChunkStore`` without a disk. Same order of eviction, same accounting, nothing survives."""

    def __init__(self, *, quota_bytes: int) -> None:
        self._quota = quota_bytes
        self._chunks: dict[ChunkId, StoredChunk] = {}
        self._uses: dict[ChunkId, None] = {}  # least recently used first
        self._is_shared = False  # with a view: copied before the next change
        self._live = 0
        self._in_use: Callable[[ChunkId], bool] = _nothing_in_use
        self._lock = threading.Lock()

    def view(self) -> AbstractContextManager[ChunkView]:
        with self._lock:
            self._is_shared = True
            return nullcontext(_Snapshot(self._chunks))

    def has(self, chunks: Sequence[ChunkId]) -> list[bool]:
        return [chunk in self._chunks for chunk in chunks]

    def get(self, chunk: ChunkId) -> StoredChunk:
        found = self._chunks.get(chunk)
        if found is None:
            raise ChunkMissingError(chunk)
        return found

    def put_many(self, chunks: Iterable[tuple[ChunkId, StoredChunk]]) -> int:
        batch = dict(chunks)
        with self._lock:
            new = {chunk: stored for chunk, stored in batch.items() if chunk not in self._chunks}
            added = sum(footprint(len(stored.data)) for stored in new.values())
            kept = sum(footprint(len(self._chunks[chunk].data)) for chunk in batch if chunk in self._chunks)
            if added + kept > self._quota:
                raise StoreFullError(f"a batch of {added + kept} bytes; the quota is {self._quota}")
            if self._live + added > self._quota:
                self._evict(int(self._quota * _LOW_WATER) - added, self._in_use, never=batch)
            for chunk in [*sorted(batch.keys() - new.keys()), *new]:
                self._use(chunk)
            self._unshare()
            for chunk, stored in new.items():
                self._chunks[chunk] = StoredChunk(stored.encoding, stored.size, bytes(stored.data))
            self._live += added
            return added

    def touch(self, chunks: Iterable[ChunkId]) -> None:
        with self._lock:
            for chunk in chunks:
                if chunk in self._chunks:
                    self._use(chunk)

    def drop(self, chunks: Iterable[ChunkId]) -> int:
        with self._lock:
            return sum(self._remove(chunk) for chunk in chunks)

    def evict(self, target_bytes: int, *, in_use: Callable[[ChunkId], bool]) -> int:
        with self._lock:
            return self._evict(target_bytes, in_use, never=())

    def protect(self, in_use: Callable[[ChunkId], bool]) -> None:
        """What the evictions of ``put_many`` take last."""
        self._in_use = in_use

    def ids(self) -> Iterator[ChunkId]:
        """Every chunk's id, in no promised order; changes meanwhile may or may not show."""
        yield from list(self._chunks)

    def stats(self) -> StoreStats:
        return StoreStats(len(self._chunks), self._live, self._live, self._quota)

    def flush(self) -> None:
        """Nothing is batched."""

    def sync(self) -> None:
        """Nothing is durable."""

    def release_resident(self) -> None:
        """Nothing is mapped."""

    def read_ahead(self, chunks: Sequence[ChunkId]) -> int:  # noqa: ARG002 - the protocol's name
        """Everything is there."""
        return 0

    def close(self) -> None:
        self._chunks.clear()

    def _unshare(self) -> None:
        if self._is_shared:
            self._chunks, self._is_shared = dict(self._chunks), False

    def _use(self, chunk: ChunkId) -> None:
        self._uses.pop(chunk, None)
        self._uses[chunk] = None

    def _remove(self, chunk: ChunkId) -> int:
        self._unshare()
        stored = self._chunks.pop(chunk, None)
        if stored is None:
            return 0
        self._uses.pop(chunk, None)
        freed = footprint(len(stored.data))
        self._live -= freed
        return freed

    def _evict(self, target: int, in_use: Callable[[ChunkId], bool], never: Iterable[ChunkId]) -> int:
        candidates = [Candidate(chunk, footprint(len(self._chunks[chunk].data))) for chunk in self._uses]
        choice = choose(candidates, self._live - target, in_use=in_use, never=frozenset(never), limit=len(self._chunks))
        for victim in choice.victims:
            self._remove(victim.chunk)
        return choice.freed
