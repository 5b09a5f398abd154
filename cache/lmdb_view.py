"""Reading chunks from the store on disk: the hot path of the node and of the proxy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, Self

import lmdb

from fastpull.cache.digest import ChunkId
from fastpull.cache.errors import ChunkCorruptError
from fastpull.cache.records import ENCODINGS, ENTRY, ENTRY_VERSION, unpack_entry
from fastpull.cache.segments import FAULT_AROUND, Segments
from fastpull.cache.store import StoredChunk

_new_tuple = tuple.__new__


class Index(Protocol):
    """``ChunkIndex``: the environment, and its database of chunks."""

    environment: lmdb.Environment
    index: lmdb._Database


class LmdbView:
    """A read transaction. ``get`` copies nothing; its buffers are valid until the ``with`` block ends.

    1.8 us for a chunk, and 1.1 us to open and close the view. A buffer is a slice of a mapped file: where the disk
    fails, system calls that read it (``writev``) fail with ``EFAULT``, but touching it kills the process.
    """

    __slots__ = ("_find", "_maps", "_segments", "_transaction")

    def __init__(self, index: Index, segments: Segments) -> None:
        self._transaction = index.environment.begin(index.index)
        self._find = self._transaction.get
        self._segments = segments
        self._maps = segments.maps

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._transaction.abort()
        self._maps.keep_small()

    def get(self, chunk: ChunkId) -> StoredChunk | None:
        """Raise ``ChunkCorruptError`` where the record's parts contradict each other."""
        entry = self._find(chunk)
        if entry is None:
            return None
        try:
            version, encoding, length, size, segment, offset, _ = ENTRY.unpack(entry)
            maps = self._maps
            data = maps[segment][offset : offset + length]
            maps.viewed_bytes += length + FAULT_AROUND
            if version == ENTRY_VERSION and len(data) == length:
                # Twice as fast as the constructor of a NamedTuple, on the hottest line of the node.
                return _new_tuple(StoredChunk, (ENCODINGS[encoding], size, data))
        except Exception as exc:  # whatever a damaged record leads to
            if unpack_entry(chunk, entry) is None:
                return None  # of a newer version
            raise ChunkCorruptError(chunk, f"its record can not be read ({exc})") from exc
        if unpack_entry(chunk, entry) is None:
            return None
        raise ChunkCorruptError(chunk, f"its segment {segment} ends before it")

    def places(self, chunks: Iterable[ChunkId]) -> Iterator[tuple[int, int, int]]:
        """Segment, offset and length of each chunk that is there."""
        for chunk in chunks:
            entry = self._find(chunk)
            if entry is not None and len(entry) == ENTRY.size:
                _, _, length, _, segment, offset, _ = ENTRY.unpack(entry)
                yield segment, offset, length
