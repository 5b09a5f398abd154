"""Bytes of the chunk store on disk. Pure. All integers little-endian, those marked ``be`` big-endian.

A store is a directory: ``index/`` is an LMDB environment, ``<number>.chunks`` are *segments*. A chunk's stored bytes
lie in one segment, one chunk right behind the other without any framing, so that chunks put together are read
together. All that is known of them stands in the index, in these databases:

``index``: chunk id (32 bytes) → entry

    offset  size  type   field
    0       1     u8     version of the entry, 1
    1       1     u8     encoding: 0 raw, 1 zstd
    2       2     -      zero
    4       4     u32    n, length of the stored bytes
    8       4     u32    length of the uncompressed bytes
    12      4     u32    number of the segment
    16      8     u64    offset in the segment
    24      8     u64    last use: a tick, that is microseconds since the epoch, made unique in the store

``uses``: tick (u64be) → chunk id. The order of eviction.

``places``: segment (u32be), offset (u64be) → length (u32), chunk id. The neighbours of a freed place.

``segments``: number (u32be) → segment

    0       8     u64    end of the committed bytes; what lies behind is of a writer that did not commit
    8       8     u64    bytes of live chunks
    16      8     u64    end of the bytes known to be on disk
    24      1     u8     1 = sealed, nothing is appended any more

``freed``: transaction (u64be), counter (u32be) → segment (u32), start (u64), end (u64). Ranges to be given back to
the file system when no reader is older than the transaction; end 2**64-1 means the file itself.

``meta``: ``format`` → version of all this (u32); ``boot`` → id of the boot in which it was last written;
``accounts`` → bytes that count towards the quota, chunks, next segment number, last tick, bytes freed and not
yet given back (five u64).

A store of a newer format is refused; a single entry of a newer version counts as missing.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from fastpull.cache.digest import ChunkId
from fastpull.cache.errors import ChunkCorruptError, IndexDamagedError, StoreVersionError
from fastpull.cache.frames import MAX_CHUNK_BYTES
from fastpull.cache.store import Encoding

FORMAT = 1
ENTRY_VERSION = 1
OVERHEAD = 224
"""Index bytes of a chunk, measured: its share of half-filled pages of random keys and of full ones of ordered keys."""

ENTRY = struct.Struct("<BB2xIIIQQ")
TICK = struct.Struct(">Q")
PLACE_KEY = struct.Struct(">IQ")
PLACE = struct.Struct("<I32s")
SEGMENT_KEY = struct.Struct(">I")
FREED_KEY = struct.Struct(">QI")
FREED = struct.Struct("<IQQ")
WHOLE_FILE = 2**64 - 1
_SEGMENT = struct.Struct("<QQQB")
_ACCOUNTS = struct.Struct("<5Q")
_FORMAT = struct.Struct("<I")

ENCODINGS = (Encoding.RAW, Encoding.ZSTD)
"""Indexed by the byte on disk: a fifth of the cost of calling the enum."""


class Entry(NamedTuple):
    """What the index knows of a chunk."""

    encoding: Encoding
    length: int  # stored bytes
    size: int  # uncompressed bytes
    segment: int
    offset: int
    tick: int


class Segment(NamedTuple):
    end: int = 0
    live_bytes: int = 0
    synced: int = 0
    is_sealed: bool = False


class Accounts(NamedTuple):
    live_bytes: int = 0
    chunks: int = 0
    next_segment: int = 1
    last_tick: int = 0
    freed_bytes: int = 0


def footprint(length: int) -> int:
    """The bytes that a chunk of ``length`` stored bytes occupies on disk, and counts towards the quota."""
    return length + OVERHEAD


def pack_entry(entry: Entry) -> bytes:
    encoding, length, size, segment, offset, tick = entry
    return ENTRY.pack(ENTRY_VERSION, encoding, length, size, segment, offset, tick)


def unpack_entry(chunk: ChunkId, data: bytes) -> Entry | None:
    """``None`` for an entry of a newer version. Raise ``ChunkCorruptError`` for bytes that are no entry."""
    if data and data[0] > ENTRY_VERSION:
        return None
    if len(data) != ENTRY.size:
        raise ChunkCorruptError(chunk, f"its index entry has {len(data)} bytes instead of {ENTRY.size}")
    version, encoding, length, size, segment, offset, tick = ENTRY.unpack(data)
    if version != ENTRY_VERSION or encoding >= len(ENCODINGS) or length > MAX_CHUNK_BYTES:
        raise ChunkCorruptError(chunk, f"its index entry has version {version}, encoding {encoding}, {length} bytes")
    return Entry(ENCODINGS[encoding], length, size, segment, offset, tick)


def pack_segment(segment: Segment) -> bytes:
    return _SEGMENT.pack(*segment)


def unpack_segment(data: bytes) -> Segment:
    if len(data) != _SEGMENT.size:
        raise IndexDamagedError(f"a segment of {len(data)} bytes instead of {_SEGMENT.size}")
    end, live_bytes, synced, is_sealed = _SEGMENT.unpack(data)
    return Segment(end, live_bytes, synced, bool(is_sealed))


def pack_accounts(accounts: Accounts) -> bytes:
    return _ACCOUNTS.pack(*accounts)


def unpack_accounts(data: bytes | None) -> Accounts:
    if data is None:
        return Accounts()
    if len(data) != _ACCOUNTS.size:
        raise IndexDamagedError(f"accounts of {len(data)} bytes instead of {_ACCOUNTS.size}")
    return Accounts(*_ACCOUNTS.unpack(data))


def pack_format() -> bytes:
    return _FORMAT.pack(FORMAT)


def check_format(data: bytes, where: str) -> None:
    """Raise ``StoreVersionError`` for a store that this version can not read."""
    (found,) = _FORMAT.unpack(data) if len(data) == _FORMAT.size else (0,)
    if found != FORMAT:
        raise StoreVersionError(
            f"{where} has chunk store format {found}, this version reads {FORMAT}: "
            "run the version that wrote it, or remove the directory (it is a cache)"
        )
