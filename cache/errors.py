"""What this package raises on purpose."""

from __future__ import annotations


class CacheError(Exception):
    """Base of everything this package raises on purpose."""


class MalformedDigestError(CacheError):
    """Text that should be a digest is none."""

    def __init__(self, text: str) -> None:
        super().__init__(f"{text[:80]!r} is no digest; expected sha256: and 64 lowercase hex digits")
        self.text = text


class ChunkMissingError(CacheError):
    """The store does not hold the chunk (any more)."""

    def __init__(self, chunk: bytes) -> None:
        super().__init__(f"chunk {chunk.hex()[:12]} is not in the store")
        self.chunk = chunk


class ChunkCorruptError(CacheError):
    """Stored or received bytes do not hash to the id they go by."""

    def __init__(self, chunk: bytes, reason: str) -> None:
        super().__init__(f"chunk {chunk.hex()[:12]} is damaged: {reason}")
        self.chunk = chunk
        self.reason = reason


class StoreFullError(CacheError):
    """The store can not take the bytes: its map, quota or disk is full. Reading goes on."""


class IndexDamagedError(CacheError):
    """LMDB's file is damaged. A chunk store starts empty when opened next; other files have to be removed by hand."""


class RecordDamagedError(CacheError):
    """A value in a table is not what was written. Dropping it is the caller's business."""

    def __init__(self, table: str, key: str, reason: str) -> None:
        super().__init__(f"the value of {key!r} in the table {table} is damaged: {reason}")
        self.table = table
        self.key = key


class RecordForeignError(RecordDamagedError):
    """A value in a table is what was written, as far as can be told, but by a version that this one does not know.

    Whoever reads treats it as damaged; whoever cleans up leaves it alone.
    """


class StoreVersionError(CacheError):
    """The files were written by a newer version; they are refused, never misread."""


class FrameError(CacheError):
    """Bytes on the wire are not the frames that this version speaks."""
