"""zstd, frame after frame, to what it holds (RFC 8878). Pure.

Frames are followed block by block. So the output of each step is bounded (a block holds at most 128 KiB,
however few bytes it takes), which the bindings' streaming calls do not offer, and a cut stream is told from
a complete one, which they do not tell either.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import zstandard

from fastpull.image.errors import LayerFormatError
from fastpull.image.piece_reader import PieceReader

MAX_WINDOW_BYTES = 128 << 20  # of memory for one stream; what zstd itself grants without being asked (--long=27)

_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = 0x184D2A5  # the upper 28 bits of a skippable frame's magic
_RAW, _RLE, _COMPRESSED, _RESERVED = range(4)
_MAX_BLOCK_BYTES = 128 << 10
_SKIP_STEP = 64 << 10


def is_zstd(start: bytes) -> bool:
    """Whether a blob that begins with ``start`` is zstd; 8 bytes are needed to recognise a skippable frame."""
    return start.startswith(_MAGIC) or (len(start) >= 8 and int.from_bytes(start[:4], "little") >> 4 == _SKIPPABLE)


def decompress_zstd(pieces: Iterable[bytes], piece_bytes: int) -> Iterator[bytes]:
    """Yield 1 to ``piece_bytes`` bytes at a time. Raise ``LayerFormatError`` for a broken or cut stream, for
    anything but frames in it, and for a window of more than ``MAX_WINDOW_BYTES``.
    """
    stream = PieceReader(pieces)
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)
    while stream.rest():
        magic = _take(stream, 4)
        if magic == _MAGIC:
            frame = decompressor.decompressobj(write_size=piece_bytes)
            for blocks in _frame(stream, piece_bytes // _MAX_BLOCK_BYTES):
                try:
                    output = frame.decompress(blocks)
                except zstandard.ZstdError as exc:
                    raise LayerFormatError(f"broken zstd stream: {exc}") from exc
                if output:
                    yield output
            if not frame.eof:
                raise LayerFormatError("broken zstd stream: a frame goes on behind its last block")
        elif int.from_bytes(magic, "little") >> 4 == _SKIPPABLE:
            left = int.from_bytes(_take(stream, 4), "little")
            while left:
                left -= len(_take(stream, min(left, _SKIP_STEP)))
        else:
            raise LayerFormatError(f"broken zstd stream: a frame starts with {magic.hex()}")


def _frame(stream: PieceReader, blocks_at_once: int) -> Iterator[bytes]:
    """A frame behind its magic: the header first, then groups of blocks, the checksum behind the last."""
    descriptor = _take(stream, 1)
    flags = descriptor[0]
    is_single_segment = flags >> 5 & 1
    header_bytes = (1 - is_single_segment) + (0, 1, 2, 4)[flags & 3] + (is_single_segment, 2, 4, 8)[flags >> 6]
    group = [_MAGIC, descriptor, _take(stream, header_bytes)]
    last = blocks = 0
    while not last:
        head = _take(stream, 3)
        number = int.from_bytes(head, "little")
        last, kind, size = number & 1, number >> 1 & 3, number >> 3
        if kind == _RESERVED or size > _MAX_BLOCK_BYTES:
            raise LayerFormatError(f"broken zstd stream: a block of type {kind} with {size} bytes")
        group += (head, _take(stream, 1 if kind == _RLE else size))
        blocks += 1
        if blocks == blocks_at_once:
            yield b"".join(group)
            group, blocks = [], 0
    if flags & 4:
        group.append(_take(stream, 4))
    if group:
        yield b"".join(group)


def _take(stream: PieceReader, size: int) -> bytes:
    data = stream.take(size)
    if len(data) < size:
        raise LayerFormatError("the zstd stream is cut")
    return data
