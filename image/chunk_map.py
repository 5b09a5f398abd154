"""The chunk map: which chunk stands where on a chain's device. Opened in place, mostly from a memory map.

Little-endian, read without conversion; n chunks in the order of their places::

    offset  size  type   field
    0       4     str    magic, b"FPCM"
    4       4     u32    version, 1
    8       8     u64    n
    16      8     u64    length of the device in bytes
    24      8            zero
    32      8n    u64    device offset of each chunk, ascending
    …       4n    u32    length of each chunk, at least 1
    …       4n    u32    numbers of the chunks, sorted by id and then number
    …       32n   bytes  id of each chunk

Chunks do not overlap. What lies between them is zero. The same chunk may stand at many places. A reader that
meets another version raises ``IndexFormatError``; the map is then fetched or built anew.
"""

from __future__ import annotations

import struct
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import islice
from operator import add, le
from typing import Self

import msgspec

from fastpull.cache.digest import CHUNK_ID_BYTES, ChunkId
from fastpull.cache.frames import MAX_CHUNK_BYTES
from fastpull.image.erofs.reader import Buffer
from fastpull.image.errors import IndexFormatError

_HEADER = struct.Struct("<4sIQQ8x")
_MAGIC = b"FPCM"
_VERSION = 1
_PER_CHUNK = 8 + 4 + 4 + CHUNK_ID_BYTES
_MAX_CHUNKS = 2**32 - 1


class Piece(msgspec.Struct, frozen=True, gc=False):
    """One chunk on the device."""

    index: int
    chunk_id: ChunkId
    device_offset: int
    size: int


def pack(chunks: Iterable[tuple[int, int, ChunkId]], device_bytes: int) -> bytes:
    """The map of ``chunks``: device offset, length and id of each, in ascending order of the offsets.

    Raise ``IndexFormatError`` for a chunk that is empty or larger than any chunk may be.
    """
    placed = list(chunks)
    for offset, size, chunk in placed:
        if not 0 < size <= MAX_CHUNK_BYTES:
            raise IndexFormatError(
                f"chunk {chunk.hex()[:12]} at {offset} has {size} bytes; 1 to {MAX_CHUNK_BYTES} exist"
            )
    ids = [chunk for _, _, chunk in placed]
    by_id = sorted(range(len(ids)), key=ids.__getitem__)  # stable: equal ids stay in order
    n = len(placed)
    return b"".join(
        (
            _HEADER.pack(_MAGIC, _VERSION, n, device_bytes),
            struct.pack(f"<{n}Q", *(offset for offset, _, _ in placed)),
            struct.pack(f"<{n}I", *(size for _, size, _ in placed)),
            struct.pack(f"<{n}I", *by_id),
            *ids,
        )
    )


class ChunkMap:
    """An opened chunk map. Keeps views of the buffer until ``close``; costs no memory of its own."""

    device_bytes: int

    def __init__(self, buffer: Buffer) -> None:
        if sys.byteorder != "little":
            raise IndexFormatError("chunk maps are read in place, which needs a little-endian machine")
        self._view = memoryview(buffer).cast("B")
        if len(self._view) < _HEADER.size:
            raise IndexFormatError(f"a chunk map of {len(self._view)} bytes")
        magic, version, n, self.device_bytes = _HEADER.unpack_from(self._view)
        if (magic, version) != (_MAGIC, _VERSION):
            raise IndexFormatError(f"no chunk map of version {_VERSION}: {magic!r} of version {version}")
        if n > _MAX_CHUNKS or len(self._view) != _HEADER.size + n * _PER_CHUNK:
            raise IndexFormatError(f"a chunk map of {n} chunks in {len(self._view)} bytes")
        sizes_start = _HEADER.size + 8 * n
        by_id_start = sizes_start + 4 * n
        ids_start = by_id_start + 4 * n
        self._offsets = self._view[_HEADER.size : sizes_start].cast("Q")
        self._sizes = self._view[sizes_start:by_id_start].cast("I")
        self._by_id = self._view[by_id_start:ids_start].cast("I")
        self._ids = self._view[ids_start:]

    @classmethod
    def open(cls, buffer: Buffer) -> Self:
        """Check everything but the ids' order. Raise ``IndexFormatError`` for bytes that are no chunk map.

        About 3 ms for 50,000 chunks. That the bytes are the right ones, by digest, is the caller's to know.
        """
        self = cls(buffer)
        offsets, sizes = self._offsets, self._sizes
        n = len(offsets)
        if n:
            ends = map(add, offsets, sizes)
            if not all(map(le, ends, islice(offsets, 1, None))) or offsets[n - 1] + sizes[n - 1] > self.device_bytes:
                raise IndexFormatError("chunks overlap or lie outside of the device")
            if not 0 < min(sizes) <= max(sizes) <= MAX_CHUNK_BYTES:
                raise IndexFormatError(f"chunks of {min(sizes)} to {max(sizes)} bytes; 1 to {MAX_CHUNK_BYTES} exist")
            if max(self._by_id) >= n:
                raise IndexFormatError("the order by id names chunks that do not exist")
        return self

    def close(self) -> None:
        """Let go of the buffer, so that a memory map can be closed. Nothing can be read afterwards."""
        for view in (self._offsets, self._sizes, self._by_id, self._ids, self._view):
            view.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """Number of places, not of different chunks."""
        return len(self._offsets)

    def id_at(self, index: int) -> ChunkId:
        start = index * CHUNK_ID_BYTES
        return ChunkId(bytes(self._ids[start : start + CHUNK_ID_BYTES]))

    def ids(self) -> list[ChunkId]:
        """The id at each place, in order. 60 ns for each, a quarter of ``id_at``."""
        ids = bytes(self._ids)
        return [ChunkId(ids[at : at + CHUNK_ID_BYTES]) for at in range(0, len(ids), CHUNK_ID_BYTES)]

    def offset_at(self, index: int) -> int:
        return self._offsets[index]

    def size_at(self, index: int) -> int:
        return self._sizes[index]

    def pieces(self, offset: int, length: int) -> list[Piece]:
        """The chunks that touch the device's bytes ``offset`` to ``offset + length``, in order, whole.

        What no piece covers is zero bytes.
        """
        if length <= 0:
            return []
        offsets = self._offsets
        first = bisect_right(offsets, offset) - 1
        if first < 0 or offsets[first] + self._sizes[first] <= offset:
            first += 1
        stop = bisect_left(offsets, offset + length, first)
        ids = bytes(self._ids[first * CHUNK_ID_BYTES : stop * CHUNK_ID_BYTES])
        return [
            Piece(index, ChunkId(ids[at : at + CHUNK_ID_BYTES]), offset, size)
            for index, at, offset, size in zip(
                range(first, stop),
                range(0, len(ids), CHUNK_ID_BYTES),
                offsets[first:stop],
                self._sizes[first:stop],
                strict=True,
            )
        ]

    def index_of(self, chunk: ChunkId) -> int | None:
        """The first place of a chunk; ``None`` if the device does not hold it."""
        place = bisect_left(self._by_id, chunk, key=self.id_at)
        if place == len(self._by_id):
            return None
        index = self._by_id[place]
        return index if self.id_at(index) == chunk else None

    def __contains__(self, chunk: object) -> bool:
        return isinstance(chunk, bytes) and self.index_of(ChunkId(chunk)) is not None
