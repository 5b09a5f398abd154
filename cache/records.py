"""Bytes of the chunk store on disk. Pure.

A chunk is an *entry* in the database ``index`` under its id (32 raw bytes), and its stored bytes, verbatim,
in the database ``data`` under the entry's row. Rows count up, so chunks put together lie together, and
neither a lookup of ids nor a change of the last use touches a page that holds data. Little-endian but the row:

    offset  size  type   field
    0       1     u8     version of the entry, 1
    1       1     u8     encoding: 0 raw, 1 zstd
    2       2     -      zero
    4       4     u32    n, length of the stored bytes
    8       4     u32    length of the uncompressed bytes
    12      4     -      zero
    16      8     u64    last use, a tick: microseconds since the epoch, made unique within the store
    24      8     u64be  row

The database ``uses`` maps a tick (u64be) to the id last used then: the order of eviction. ``meta`` holds under
``format`` the version of the whole store (u32), and under ``accounts``:

    offset  size  type   field
    0       8     u64    bytes that count towards the quota
    8       8     u64    chunks
    16      8     u64    next row
    24      8     u64    last tick given

A reader refuses a store of a newer format, and treats a single entry of a newer version as missing.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from fastpull.cache.digest import ChunkId
from fastpull.cache.errors import ChunkCorruptError, StoreVersionError
from fastpull.cache.store import Encoding

FORMAT = 1
ENTRY_VERSION = 1
MAX_RECORD_BYTES = 1 << 24

ENTRY = struct.Struct("<BB2xII4xQ8s")
ROW = struct.Struct(">Q")
TICK = struct.Struct(">Q")
_ACCOUNTS = struct.Struct("<4Q")
_FORMAT = struct.Struct("<I")

ENCODINGS = (Encoding.RAW, Encoding.ZSTD)
"""Indexed by the byte on disk: a fifth of the cost of calling the enum."""

PAGE = 4096
_PAGE_HEADER = 16
_INLINE = 2022  # LMDB keeps a longer value in pages of its own
OVERHEAD = 160  # the entry, the use and their share of half-filled index pages


class Entry(NamedTuple):
    """What the index knows of a chunk."""

    encoding: Encoding
    length: int  # stored bytes
    size: int  # uncompressed bytes
    tick: int
    row: bytes


class Accounts(NamedTuple):
    live_bytes: int = 0
    chunks: int = 0
    next_row: int = 1
    last_tick: int = 0


def footprint(length: int) -> int:
    """The bytes that a chunk of ``length`` stored bytes occupies on disk, and counts towards the quota."""
    if length <= _INLINE:
        return length + OVERHEAD
    return -(-(length + _PAGE_HEADER) // PAGE) * PAGE + OVERHEAD


def pack_entry(entry: Entry) -> bytes:
    return ENTRY.pack(ENTRY_VERSION, entry.encoding, entry.length, entry.size, entry.tick, entry.row)


def unpack_entry(chunk: ChunkId, data: bytes | memoryview) -> Entry | None:
    """``None`` for an entry of a newer version. Raise ``ChunkCorruptError`` for bytes that are no entry."""
    if not data or data[0] != ENTRY_VERSION:
        if data and data[0] > ENTRY_VERSION:
            return None
        raise ChunkCorruptError(chunk, "its index entry is no entry")
    if len(data) != ENTRY.size:
        raise ChunkCorruptError(chunk, f"its index entry has {len(data)} bytes instead of {ENTRY.size}")
    _, encoding, length, size, tick, row = ENTRY.unpack(data)
    if encoding >= len(ENCODINGS):
        raise ChunkCorruptError(chunk, f"its index entry names the encoding {encoding}")
    return Entry(ENCODINGS[encoding], length, size, tick, row)


def pack_accounts(accounts: Accounts) -> bytes:
    return _ACCOUNTS.pack(*accounts)


def unpack_accounts(data: bytes | memoryview | None) -> Accounts:
    return Accounts() if data is None else Accounts(*_ACCOUNTS.unpack(data))


def pack_format() -> bytes:
    return _FORMAT.pack(FORMAT)


def check_format(data: bytes | memoryview, where: str) -> None:
    """Raise ``StoreVersionError`` for a store that this version can not read."""
    (found,) = _FORMAT.unpack(data) if len(data) == _FORMAT.size else (0,)
    if found != FORMAT:
        raise StoreVersionError(
            f"{where} has chunk store format {found}, this version reads {FORMAT}: "
            "run the version that wrote it, or remove the directory (it is a cache)"
        )
