"""A blob on its way: a sparse file, and a map that says which bytes of it are there.

``fills/<hex>.part`` holds the bytes, ``fills/<hex>.map`` the map, little-endian:

    offset  size  type   field
    0       4     str    magic, b"FPF1"
    4       4     u32    state: 0 filling, 1 verified, 2 failed
    8       8     u64    size of the blob
    16      8     u64    prefix: so many bytes from 0 on are there
    24      36    str    boot id of the kernel that wrote this
    60      4     -      zero
    64      n     bits   bit i (lowest first) = block i of 1 MiB is there

The map is written behind the bytes it speaks of and neither is flushed, so it holds as long as the page cache:
after ``kill -9`` a fill goes on where it was, after a reboot (another boot id) it starts anew. The lock (flock
on the ``.part``) says that a process fills; it ends with the process. Another magic is swept, not read.
"""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import Self

from fastpull.cache.digest import Digest
from fastpull.proxy.mirror.spans import Spans
from fastpull.proxy.ranges import ByteRange

BLOCK_BYTES = 2**20

_HEADER = struct.Struct("<4sIQQ36s4x")
_MAGIC = b"FPF1"
_PREFIX = struct.Struct("<Q")
_PREFIX_AT = 16
_STATE = struct.Struct("<I")
_STATE_AT = 4
FILLING, VERIFIED, FAILED = 0, 1, 2


class PartialBusyError(Exception):
    """Another process fills this blob."""


def boot_id() -> bytes:
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()[:36]


class Partial:
    """One process's hold on a blob that is being filled."""

    def __init__(self, folder: Path, digest: Digest, fd: int) -> None:
        self.digest = digest
        self.path = part_path(folder, digest)
        self.fd = fd
        self.size: int | None = None
        self.spans = Spans()
        self._map_path = map_path(folder, digest)
        self._map_fd = -1
        self._blocks = bytearray()
        self._is_committed = False

    @classmethod
    def open(cls, folder: Path, digest: Digest) -> Self:
        """Take the blob over, with what an earlier fill left of it. Raise ``PartialBusyError``, ``OSError``."""
        path = part_path(folder, digest)
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                os.close(fd)
                raise PartialBusyError(str(digest)) from exc
            if _is_at(fd, path):
                break
            os.close(fd)  # committed or swept between open and lock: that file is another name's now
        partial = cls(folder, digest, fd)
        partial._resume()
        return partial

    def begin(self, size: int) -> None:
        """The size is known now. What an earlier fill left counts only if it had the same. Raise ``OSError``."""
        if self.size == size and self._map_fd >= 0:
            return
        self.spans = Spans()
        self.size = size
        os.ftruncate(self.fd, 0)
        os.ftruncate(self.fd, size)
        self._blocks = bytearray((size + BLOCK_BYTES - 1) // BLOCK_BYTES // 8 + 1)
        if self._map_fd < 0:
            self._map_fd = os.open(self._map_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        os.ftruncate(self._map_fd, 0)
        os.pwrite(self._map_fd, _HEADER.pack(_MAGIC, FILLING, size, 0, boot_id()) + bytes(self._blocks), 0)

    def mark(self, start: int, stop: int) -> None:
        """These bytes are in the file now."""
        assert self.size is not None
        before = self.spans.end_from(start)
        self.spans.add(start, stop)
        if before >= stop:
            return
        run_end = self.spans.end_from(start)
        first_block = start // BLOCK_BYTES
        last_block = (stop - 1) // BLOCK_BYTES
        touched = False
        for block in range(first_block, last_block + 1):
            block_end = min((block + 1) * BLOCK_BYTES, self.size)
            if self.spans.end_from(block * BLOCK_BYTES) >= block_end:
                self._blocks[block // 8] |= 1 << block % 8
                touched = True
        if touched:
            low, high = first_block // 8, last_block // 8 + 1
            os.pwrite(self._map_fd, self._blocks[low:high], _HEADER.size + low)
        if (prefix := self.spans.end_from(0)) == run_end:
            os.pwrite(self._map_fd, _PREFIX.pack(prefix), _PREFIX_AT)

    def commit(self, target: Path) -> None:
        """Make the verified bytes the blob, durably. Blocks for the disk.

        ``path`` stays a second name of the file until ``close``, for readers that were told of it.
        """
        os.fdatasync(self.fd)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.hardlink_to(self.path)
        self.set_state(VERIFIED)
        self._map_path.unlink(missing_ok=True)
        self._is_committed = True

    def discard(self) -> None:
        """Remove what is there: it is wrong, or there is no room for it."""
        if self._map_fd >= 0:
            self.set_state(FAILED)
        self.path.unlink(missing_ok=True)
        self._map_path.unlink(missing_ok=True)

    def set_state(self, state: int) -> None:
        os.pwrite(self._map_fd, _STATE.pack(state), _STATE_AT)

    def close(self) -> None:
        """Let go. An unfinished file stays as it is, for the next fill."""
        if self._is_committed:
            self.path.unlink(missing_ok=True)
        for fd in (self.fd, self._map_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self._map_fd = -1

    def _resume(self) -> None:
        try:
            fd = os.open(self._map_path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        found = read_map(fd, os.fstat(self.fd).st_size)
        if found is None:
            os.close(fd)
            return
        self._map_fd = fd
        self.size, self.spans, self._blocks = found.size, found.spans, found.blocks


class PartialMap:
    """What a map file says."""

    def __init__(self, state: int, size: int, prefix: int, blocks: bytearray) -> None:
        self.state = state
        self.size = size
        self.blocks = blocks
        self.spans = Spans()
        self.spans.add(0, prefix)
        for block in range((size + BLOCK_BYTES - 1) // BLOCK_BYTES):
            if blocks[block // 8] >> block % 8 & 1:
                self.spans.add(*ByteRange(block * BLOCK_BYTES, min((block + 1) * BLOCK_BYTES, size)))


def read_map(fd: int, part_bytes: int) -> PartialMap | None:
    """Read a map; ``None`` when it is of another boot, another version, or does not fit its file."""
    raw = os.pread(fd, 2**24, 0)
    if len(raw) < _HEADER.size:
        return None
    magic, state, size, prefix, boot = _HEADER.unpack_from(raw)
    blocks = bytearray(raw[_HEADER.size :])
    if magic != _MAGIC or boot != boot_id() or size != part_bytes or prefix > size:
        return None
    if len(blocks) * 8 * BLOCK_BYTES < size:
        return None
    return PartialMap(state, size, prefix, blocks)


def part_path(folder: Path, digest: Digest) -> Path:
    return folder / f"{digest.hex}.part"


def map_path(folder: Path, digest: Digest) -> Path:
    return folder / f"{digest.hex}.map"


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
