"""The layer index: what a layer holds, in the order of its tar, without file data.

Serialised (``to_bytes``): ``b"FPLI"``, u8 version 1, then zstd of msgpack of ``LayerIndex``. A reader that
meets another version raises ``IndexFormatError``; the layer is then ingested anew.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import Self

import msgspec
import zstandard

from fastpull.cache.digest import CHUNK_ID_BYTES, ChunkId
from fastpull.image.errors import IndexFormatError

_NAME = b"FPLI"
_VERSION = 1
_MAGIC = _NAME + bytes((_VERSION,))
_MAX_INDEX_BYTES = 2**31

# One chunk of a file in ``Entry.chunks``: 32 bytes id, u32 little-endian uncompressed length.
CHUNK_REF = struct.Struct(f"<{CHUNK_ID_BYTES}sI")


class EntryType(enum.IntEnum):
    FILE = 0
    DIRECTORY = 1
    SYMLINK = 2
    HARDLINK = 3  # ``link`` names an earlier path of the chain
    CHARACTER = 4
    BLOCK = 5
    FIFO = 6
    WHITEOUT = 7  # ``path`` is the removed path, without ``.wh.``
    OPAQUE = 8  # ``path`` is the directory whose lower content is hidden


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One tar entry. ``path`` is relative and normalised (no leading ``/``, ``./`` or ``..``); the root is ``b""``."""

    path: bytes
    type: EntryType
    mode: int = 0o755  # permission, setuid, setgid, sticky bits: 0 … 0o7777
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0  # exactly as the tar gives it; may be negative
    size: int = 0  # files: uncompressed bytes
    link: bytes = b""  # symlink: target, verbatim; hardlink: normalised path
    major: int = 0
    minor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()  # full names ("security.capability"), sorted
    chunks: bytes = b""  # files: CHUNK_REF after CHUNK_REF, in file order

    def chunk_refs(self) -> Iterator[tuple[ChunkId, int]]:
        """The file's chunks: id and uncompressed length."""
        for chunk, size in CHUNK_REF.iter_unpack(self.chunks):
            yield ChunkId(chunk), size


class LayerIndex(msgspec.Struct, frozen=True, gc=False):
    """Everything about one layer that a file tree needs."""

    diff_id: str
    entries: list[Entry]
    content_bytes: int = 0  # sum of file sizes
    new_bytes: int = 0  # of these, not in the store when it was ingested
    stored_bytes: int = 0  # what those took in the store
    tar_bytes: int = 0  # length of the uncompressed tar

    def to_bytes(self) -> bytes:
        return _MAGIC + zstandard.ZstdCompressor(level=3).compress(msgspec.msgpack.encode(self))

    @classmethod
    def from_bytes(cls, data: bytes | memoryview) -> Self:
        """Raise ``IndexFormatError`` for bytes that are no index of this version."""
        if bytes(data[: len(_MAGIC)]) != _MAGIC:
            raise IndexFormatError(f"no layer index of version 1: starts with {bytes(data[:5])!r}")
        try:
            packed = zstandard.ZstdDecompressor().decompress(
                bytes(data[len(_MAGIC) :]), max_output_size=_MAX_INDEX_BYTES
            )
            return msgspec.msgpack.decode(packed, type=cls)
        except (zstandard.ZstdError, msgspec.DecodeError) as exc:
            raise IndexFormatError(f"damaged layer index: {exc}") from exc


def is_newer(data: bytes) -> bool:
    """Whether these are bytes of an index that only a newer version can read."""
    return data[: len(_NAME)] == _NAME and data[len(_NAME) : len(_MAGIC)] > _MAGIC[len(_NAME) :]
