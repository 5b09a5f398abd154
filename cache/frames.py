"""Chunk frames: the binary body of ``POST /v1/chunks``. Pure.

Request (``application/vnd.fastpull.chunk-ids.v1``): chunk ids, 32 bytes each, at most ``MAX_IDS``; the
query may name ``chain=sha256:…`` so that the proxy knows which layers bring an evicted chunk back.

Answer (``application/vnd.fastpull.chunks.v1``): for each id, in order, one frame, little-endian:

    offset  size  type   field
    0       1     u8     encoding: 0 raw, 1 zstd, 255 = the proxy does not have it (no data follows)
    1       3     -      zero
    4       4     u32    n, length of the stored data
    8       4     u32    uncompressed length
    12      n     bytes  the stored data
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

from fastpull.cache.digest import CHUNK_ID_BYTES, ChunkId
from fastpull.cache.errors import FrameError
from fastpull.cache.store import Encoding, StoredChunk

IDS_TYPE = "application/vnd.fastpull.chunk-ids.v1"
FRAMES_TYPE = "application/vnd.fastpull.chunks.v1"
MAX_IDS = 4096
MAX_CHUNK_BYTES = 1 << 20  # no chunk is larger, compressed or not

HEADER = struct.Struct("<BxxxII")
_MISSING = 255

MISSING_FRAME = HEADER.pack(_MISSING, 0, 0)


def pack_ids(chunks: Sequence[ChunkId]) -> bytes:
    return b"".join(chunks)


def unpack_ids(body: bytes) -> list[ChunkId]:
    """Raise ``FrameError`` for a body that is no sequence of ids or holds too many."""
    count, rest = divmod(len(body), CHUNK_ID_BYTES)
    if rest or count > MAX_IDS:
        raise FrameError(f"a body of {len(body)} bytes; expected 32 per chunk id and at most {MAX_IDS} ids")
    return [ChunkId(body[i : i + CHUNK_ID_BYTES]) for i in range(0, len(body), CHUNK_ID_BYTES)]


def header(chunk: StoredChunk) -> bytes:
    """What stands before ``chunk.data`` on the wire."""
    return HEADER.pack(chunk.encoding, len(chunk.data), chunk.size)


class FrameReader:
    """Sans-IO: feed received bytes, take complete frames. ``None`` stands for a chunk the proxy lacks."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[StoredChunk | None]:
        """Yield every frame completed by ``data``. Raise ``FrameError`` for bytes that are no frame."""
        self._buffer += data
        position = 0
        while len(self._buffer) - position >= HEADER.size:
            encoding, length, size = HEADER.unpack_from(self._buffer, position)
            if encoding == _MISSING:
                position += HEADER.size
                yield None
                continue
            if encoding not in (Encoding.RAW, Encoding.ZSTD) or max(length, size) > MAX_CHUNK_BYTES:
                raise FrameError(f"frame with encoding {encoding}, {length} stored and {size} plain bytes")
            end = position + HEADER.size + length
            if len(self._buffer) < end:
                break
            yield StoredChunk(Encoding(encoding), size, bytes(self._buffer[position + HEADER.size : end]))
            position = end
        del self._buffer[:position]

    @property
    def pending(self) -> int:
        """Bytes of an incomplete frame; not zero at the end of the body = it was cut."""
        return len(self._buffer)
