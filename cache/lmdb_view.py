"""Reading chunks from the store on disk: the hot path of the node and of the proxy.

The segments are read, not mapped. Of a read of 4 KiB and one of 512 KiB in nine chunks, both in the page cache: 71 and
300 us through the node where bytes are copied into memory that is used again (``scratch.py``), 107 and 410 where the
kernel takes them out of a map, which costs a fault or the look-up of a page every 4 KiB. A map also brings SIGBUS where
the disk fails, page-wise reads of the disk where the kernel believes that reading ahead is in vain, and pages that
count as ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, Self

import lmdb

from fastpull.cache.digest import ChunkId
from fastpull.cache.errors import ChunkCorruptError
from fastpull.cache.frames import MAX_CHUNK_BYTES
from fastpull.cache.records import ENCODINGS, ENTRY, ENTRY_VERSION, unpack_entry
from fastpull.cache.segments import Segments
from fastpull.cache.spans import joined
from fastpull.cache.store import ChunkPlace, Filling, StoredChunk

_new_tuple = tuple.__new__


class Index(Protocol):
    """``ChunkIndex``: the environment, and its database of chunks."""

    environment: lmdb.Environment
    index: lmdb._Database


class LmdbView:
    """``ChunkView`` in a read transaction. 1.8 us for a ``find``, and 1.1 us to open and close the view."""

    __slots__ = ("_find", "_rooms", "_segments", "_transaction")

    def __init__(self, index: Index, segments: Segments) -> None:
        self._transaction = index.environment.begin(index.index)
        self._find = self._transaction.get
        self._segments = segments
        self._rooms: list[memoryview] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._transaction.abort()
        for room in self._rooms:
            self._segments.scratch.give_back(room)

    def find(self, chunk: ChunkId) -> ChunkPlace | None:
        entry = self._find(chunk)
        if entry is None:
            return None
        if len(entry) == ENTRY.size:
            version, encoding, length, size, segment, offset, _ = ENTRY.unpack(entry)
            if version == ENTRY_VERSION and encoding < len(ENCODINGS) and length <= MAX_CHUNK_BYTES:
                # Twice as fast as the constructor of a NamedTuple, on the hottest line of the node.
                return _new_tuple(ChunkPlace, (ENCODINGS[encoding], size, length, segment, offset))
        unpack_entry(chunk, entry)  # says what is wrong with it, unless it is of a newer version
        return None

    def fill(self, fillings: Sequence[Filling], *, wait: bool = True) -> bool:
        read = self._segments.read_into
        number = start = end = -1
        buffers: list[memoryview] = []
        for place, skip, buffer in fillings:
            at = place.offset + skip
            if at == end and place.segment == number:
                buffers.append(buffer)
            else:
                if buffers and not read(number, start, buffers, end - start, wait=wait):
                    return False
                number, start, end, buffers = place.segment, at, at, [buffer]
            end += len(buffer)
        return not buffers or read(number, start, buffers, end - start, wait=wait)

    def room(self, length: int) -> memoryview:
        room = self._segments.scratch.take(length)
        self._rooms.append(room)
        return room

    def get(self, chunk: ChunkId) -> StoredChunk | None:
        place = self.find(chunk)
        if place is None:
            return None
        try:
            data = self._segments.read(place.segment, place.offset, place.length)
        except OSError as exc:
            raise ChunkCorruptError(chunk, f"the disk can not give its bytes ({exc})") from exc
        if len(data) != place.length:
            raise ChunkCorruptError(chunk, f"its segment {place.segment} ends before it")
        return StoredChunk(place.encoding, place.size, data)

    def read_ahead(self, chunks: Iterable[ChunkId]) -> int:
        """``ChunkStore.read_ahead``."""
        spans = joined(sorted(self._places(chunks)))
        return sum(self._segments.read_ahead(*span) for span in spans)

    def _places(self, chunks: Iterable[ChunkId]) -> Iterator[tuple[int, int, int]]:
        """Segment, offset and length of each chunk that is there."""
        for chunk in chunks:
            entry = self._find(chunk)
            if entry is not None and len(entry) == ENTRY.size:
                _, _, length, _, segment, offset, _ = ENTRY.unpack(entry)
                yield segment, offset, length
