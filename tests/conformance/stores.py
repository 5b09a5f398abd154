"""Every implementation of ``ChunkStore``, and chunks to put into them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from blake3 import blake3

from fastpull.cache.codec import encode
from fastpull.cache.digest import ChunkId, chunk_id
from fastpull.cache.lmdb_store import LmdbChunkStore
from fastpull.cache.memory_store import MemoryChunkStore
from fastpull.cache.store import ChunkStore, ChunkView, Encoding, StoredChunk, StoreStats

START = 1_700_000_000.0  # of a store's clock


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class ReopenedStore:
    """A store on disk that is closed and opened again before every call but ``view``."""

    def __init__(self, open_store: Callable[[], LmdbChunkStore]) -> None:
        self._open = open_store
        self._store = open_store()
        self._in_use: Callable[[ChunkId], bool] = lambda _chunk: False

    def _again(self) -> LmdbChunkStore:
        self._store.flush()  # uses that are not flushed may be lost
        self._store.close()
        self._store = self._open()
        self._store.protect(self._in_use)
        return self._store

    def view(self) -> AbstractContextManager[ChunkView]:
        return self._store.view()

    def has(self, chunks: Sequence[ChunkId]) -> list[bool]:
        return self._again().has(chunks)

    def get(self, chunk: ChunkId) -> StoredChunk:
        return self._again().get(chunk)

    def put_many(self, chunks: Iterable[tuple[ChunkId, StoredChunk]]) -> int:
        return self._again().put_many(chunks)

    def touch(self, chunks: Iterable[ChunkId]) -> None:
        self._again().touch(chunks)

    def drop(self, chunks: Iterable[ChunkId]) -> int:
        return self._again().drop(chunks)

    def evict(self, target_bytes: int, *, in_use: Callable[[ChunkId], bool]) -> int:
        return self._again().evict(target_bytes, in_use=in_use)

    def protect(self, in_use: Callable[[ChunkId], bool]) -> None:
        self._in_use = in_use

    def ids(self) -> Iterator[ChunkId]:
        return self._again().ids()

    def flush(self) -> None:
        self._again().flush()

    def sync(self) -> None:
        self._again().sync()

    def release_resident(self) -> None:
        self._again().release_resident()

    def read_ahead(self, chunks: Sequence[ChunkId]) -> int:
        return self._again().read_ahead(chunks)

    def stats(self) -> StoreStats:
        return self._again().stats()

    def close(self) -> None:
        self._store.close()


KINDS = ("memory", "disk", "disk-not-durable", "disk-reopened")


def make_store(kind: str, path: Path, quota_bytes: int, clock: Clock) -> ChunkStore:
    def open_on_disk() -> LmdbChunkStore:
        store = LmdbChunkStore.open(path, quota_bytes=quota_bytes, durable=kind != "disk-not-durable")
        store.clock = clock
        return store

    if kind == "memory":
        return MemoryChunkStore(quota_bytes=quota_bytes)
    return ReopenedStore(open_on_disk) if kind == "disk-reopened" else open_on_disk()


def content(number: int, size: int = 5000) -> bytes:
    """Another one for each number, half of it compressible."""
    noise: bytes = blake3(number.to_bytes(8, "little")).digest(length=size // 2 + 32)
    return (noise + bytes(size))[:size]


def raw(number: int, size: int = 5000) -> tuple[ChunkId, StoredChunk]:
    data = content(number, size)
    return chunk_id(data), StoredChunk(Encoding.RAW, size, data)


def packed(number: int, size: int = 5000) -> tuple[ChunkId, StoredChunk]:
    data = content(number, size)
    return chunk_id(data), encode(data)
