"""Chunk content to stored bytes and back.

Compressed with zstd where that saves at least a twentieth, raw otherwise. Both calls release the GIL for the
work and may run in any number of threads; each thread keeps contexts of its own, which zstandard requires.
"""

from __future__ import annotations

import threading

import zstandard

from fastpull.cache.digest import ChunkId, chunk_id
from fastpull.cache.errors import ChunkCorruptError
from fastpull.cache.frames import MAX_CHUNK_BYTES
from fastpull.cache.store import Encoding, StoredChunk

_KEEP_RAW_ABOVE = 0.95  # of the size: reading raw bytes costs nothing, so a smaller saving is a loss
_SIZE_UNKNOWN = -1


class _Contexts(threading.local):
    def __init__(self) -> None:
        self.compressors: dict[int, zstandard.ZstdCompressor] = {}
        self.decompressor = zstandard.ZstdDecompressor()

    def compressor(self, level: int) -> zstandard.ZstdCompressor:
        found = self.compressors.get(level)
        if found is None:
            found = self.compressors[level] = zstandard.ZstdCompressor(level=level)
        return found


_contexts = _Contexts()


def encode(data: bytes | memoryview, level: int = 1) -> StoredChunk:
    """Store form of a chunk's content. ``data`` itself is kept, not copied, where it stays raw."""
    compressed = _contexts.compressor(level).compress(data)
    if len(compressed) > len(data) * _KEEP_RAW_ABOVE:
        return StoredChunk(Encoding.RAW, len(data), data)
    return StoredChunk(Encoding.ZSTD, len(data), compressed)


def decode(stored: StoredChunk, chunk: ChunkId, *, verify: bool = True) -> bytes:
    """The content of ``chunk``.

    Raise ``ChunkCorruptError`` when the stored bytes are damaged, have another length than they claim, or
    (with ``verify``) hash to another id. Never allocates more than ``MAX_CHUNK_BYTES`` for the content.
    """
    if stored.size > MAX_CHUNK_BYTES:
        raise ChunkCorruptError(chunk, f"it claims {stored.size} bytes; no chunk has more than {MAX_CHUNK_BYTES}")
    content = bytes(stored.data) if stored.encoding == Encoding.RAW else _inflate(stored, chunk)
    if len(content) != stored.size:
        raise ChunkCorruptError(chunk, f"it has {len(content)} bytes instead of {stored.size}")
    if verify and (got := chunk_id(content)) != chunk:
        raise ChunkCorruptError(chunk, f"its content is that of {got.hex()[:12]}")
    return content


def _inflate(stored: StoredChunk, chunk: ChunkId) -> bytes:
    try:
        # zstandard trusts the frame's own length and allocates it, whatever max_output_size says.
        claimed = zstandard.frame_content_size(stored.data)
        if claimed not in (stored.size, _SIZE_UNKNOWN):
            raise ChunkCorruptError(chunk, f"its zstd frame holds {claimed} bytes instead of {stored.size}")
        return _contexts.decompressor.decompress(stored.data, max_output_size=stored.size, allow_extra_data=False)
    except zstandard.ZstdError as exc:
        raise ChunkCorruptError(chunk, str(exc)) from exc
