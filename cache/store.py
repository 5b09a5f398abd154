"""The chunk store: its contract and the values that cross it."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from fastpull.cache.digest import ChunkId


class Encoding(enum.IntEnum):
    """How a chunk's bytes are stored and sent."""

    RAW = 0
    ZSTD = 1


class StoredChunk(NamedTuple):
    """A chunk as stored. ``size`` is the uncompressed length, ``data`` the stored bytes."""

    encoding: Encoding
    size: int
    data: bytes | memoryview


class ChunkPlace(NamedTuple):
    """Where a view finds a chunk's stored bytes; only for that view. ``size``: uncompressed, ``length``: stored."""

    encoding: Encoding
    size: int
    length: int
    segment: int
    offset: int


Filling = tuple[ChunkPlace, int, memoryview]
"""A chunk, where in its stored bytes to begin, and memory to read from there on into."""


@dataclass(frozen=True, slots=True)
class StoreStats:
    chunks: int
    live_bytes: int  # records, headers included
    file_bytes: int  # allocated on disk
    quota_bytes: int


class ChunkView(Protocol):
    """A consistent look at the store."""

    def find(self, chunk: ChunkId) -> ChunkPlace | None:
        """Raise ``ChunkCorruptError`` for a record that contradicts itself."""
        ...

    def fill(self, fillings: Sequence[Filling], *, wait: bool = True) -> bool:
        """Read chunks' bytes into all the memory given. Neighbours on disk become one read.

        Without ``wait``, return False, with some memory filled, where the disk would have to be waited for. Raise
        ``OSError`` where it fails, and then look at each chunk with ``get``.
        """
        ...

    def room(self, length: int) -> memoryview:
        """Memory to read into, that holds anything and must not be used any more once the view is closed."""
        ...

    def get(self, chunk: ChunkId) -> StoredChunk | None:
        """A copy. Raise ``ChunkCorruptError`` also where the disk can not give it."""
        ...


class ChunkStore(Protocol):
    """Content-addressed chunks. Every implementation passes ``tests/conformance``.

    Methods block for microseconds (``view``, ``has``) or for disk writes (``put_many``, ``evict``,
    ``drop``); call the latter from a thread. All are safe to call from several threads; several
    processes may open one store.
    """

    def view(self) -> AbstractContextManager[ChunkView]:
        """Open a view; never keep one, or its ``room``, across an ``await``."""
        ...

    def has(self, chunks: Sequence[ChunkId]) -> list[bool]: ...

    def get(self, chunk: ChunkId) -> StoredChunk:
        """Return a copy. Raise ``ChunkMissingError``, or ``ChunkCorruptError`` for an unreadable record."""
        ...

    def put_many(self, chunks: Iterable[tuple[ChunkId, StoredChunk]]) -> int:
        """Keep all chunks, all or none after a crash; return the stored bytes that were new.

        A chunk that is there already changes nothing but its last use. The caller vouches that ids
        match. Raise ``StoreFullError`` when the bytes do not fit even after eviction.
        """
        ...

    def touch(self, chunks: Iterable[ChunkId]) -> None:
        """Mark as used now. May be batched and lost in a crash."""
        ...

    def drop(self, chunks: Iterable[ChunkId]) -> int:
        """Remove chunks (damaged, or garbage); absent ones are fine. Return the bytes freed."""
        ...

    def evict(self, target_bytes: int, *, in_use: Callable[[ChunkId], bool]) -> int:
        """Remove least recently used chunks until ``live_bytes <= target_bytes``; those for which
        ``in_use`` is true go last. Return the bytes freed.
        """
        ...

    def protect(self, in_use: Callable[[ChunkId], bool]) -> None:
        """Say what the evictions of ``put_many`` take last. Called often, on the thread that puts."""
        ...

    def ids(self) -> Iterator[ChunkId]:
        """Every chunk's id, in no promised order; changes meanwhile may or may not show. For scrubbing."""
        ...

    def flush(self) -> None:
        """Record the uses that ``touch`` collected and tidy up. Call it every few seconds."""
        ...

    def sync(self) -> None:
        """Make what was put so far, by any process, survive a power loss. Call it before telling of a chunk."""
        ...

    def read_ahead(self, chunks: Sequence[ChunkId]) -> int:
        """Have the disk begin to read what is not in the page cache, in its own order; return those bytes.

        What is not in the store is left out. Blocks while the disk's queue is full; raises ``CacheError`` only for
        the index.
        """
        ...

    def release_resident(self) -> None:
        """Take the mapped index out of this process's resident set; it stays in the page cache."""
        ...

    def stats(self) -> StoreStats: ...

    def close(self) -> None:
        """No view may be open, no other call running."""
        ...
