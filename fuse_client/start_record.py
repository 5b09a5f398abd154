"""What is kept of a chain's last start for the report: touches, waits, plan and fetches. One file for each chain.

``<root>/starts/<64 hex of the chainID>.start`` is MessagePack of ``StartRecord``. A file of another version is
no record. Some 21 bytes for each touched chunk and 40 for each wait: 1 MB for a start that touches 2 GB.
"""

from __future__ import annotations

import logging
import os
from array import array
from pathlib import Path
from typing import Literal

import msgspec

from fastpull.cache.digest import Digest

log = logging.getLogger(__name__)

VERSION = 1
MAX_FILES = 64  # the oldest start goes first
_SUFFIX = ".start"


class Wait(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A read that could not be answered at once. Times in microseconds, ``at_us`` since the mount."""

    offset: int  # on the device
    length: int
    at_us: int
    queue_us: int  # until a request for it went out
    fetch_us: int  # until its bytes were here
    inflate_us: int  # until they were decompressed and verified
    disk_us: int = 0  # it was local, but had to come from the disk

    @property
    def total_us(self) -> int:
        return self.queue_us + self.fetch_us + self.inflate_us + self.disk_us


class Fetched(msgspec.Struct, frozen=True, kw_only=True):
    """What arrived for the chain meanwhile, in one lane. A chunk that a reader came to wait for is demand."""

    lane: str
    chunks: int
    received_bytes: int  # as sent, compressed
    content_bytes: int


class StartRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One start. The first touches are columns in the order of the touches, little-endian arrays."""

    version: int = VERSION
    chain_id: str
    started_at: float  # of the mount, seconds since the epoch
    ended_by: Literal["", "settled", "limit", "unmount"] = ""  # empty = it goes on
    indexes: bytes = b""  # u32: places in the chunk map
    offsets: bytes = b""  # u64: device
    sizes: bytes = b""  # u32
    at_ms: bytes = b""  # u32: since the mount
    foreseen: bytes = b""  # u8: 1 = the plan had it
    waits: tuple[Wait, ...] = ()
    waits_left_out: int = 0
    planned_chunks: int = 0
    planned_bytes: int = 0
    fetched: tuple[Fetched, ...] = ()
    vain_chunks: int = 0  # fetched, and not touched until the end of the start
    vain_bytes: int = 0  # content
    vain_received_bytes: int = 0  # as sent, compressed
    chunks: int = 0  # of the whole image
    content_bytes: int = 0

    def touches(self) -> list[tuple[int, int, int, int, bool]]:
        """Index, offset, size, ms since the mount and whether the plan had it, of each first touch.

        Raise ``ValueError`` for columns of different lengths.
        """
        columns = (_unpack("I", self.indexes), _unpack("Q", self.offsets), _unpack("I", self.sizes))
        flags = (flag != 0 for flag in self.foreseen)
        return list(zip(*columns, _unpack("I", self.at_ms), flags, strict=True))


def _unpack(code: str, data: bytes) -> array[int]:
    values = array(code)
    values.frombytes(data)
    return values


class StartFiles:
    """Reads and writes the records. Small files, written at the end of a start."""

    def __init__(self, root: Path) -> None:
        self._directory = root / "starts"

    def write(self, record: StartRecord) -> None:
        """Replace the chain's record. A disk that can not take it costs the report, nothing else."""
        path = self._path(Digest.parse(record.chain_id))
        partial = path.with_name(f".{path.name}-{os.getpid()}")
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial.write_bytes(msgspec.msgpack.encode(record))
            partial.rename(path)
            for old in self._files()[:-MAX_FILES]:
                old.unlink(missing_ok=True)
        except OSError as exc:
            log.warning("the record of a start of %s is lost: %s", record.chain_id, exc)

    def read(self, chain: Digest) -> StartRecord | None:
        """The chain's last start that has ended; None = there is none, or it can not be read."""
        return _read(self._path(chain))

    def latest(self) -> StartRecord | None:
        """The last start of all chains."""
        return next(filter(None, map(_read, reversed(self._files()))), None)

    def _path(self, chain: Digest) -> Path:
        return self._directory / f"{chain.hex}{_SUFFIX}"

    def _files(self) -> list[Path]:
        return sorted(self._directory.glob(f"[0-9a-f]*{_SUFFIX}"), key=lambda file: file.stat().st_mtime_ns)


def _read(path: Path) -> StartRecord | None:
    try:
        record = msgspec.msgpack.decode(path.read_bytes(), type=StartRecord)
        record.touches()
    except (OSError, msgspec.DecodeError, ValueError):
        return None
    return record if record.version == VERSION else None
