"""Reads a chain's plan into the kernel's page cache, in a process of its own.

    python -P -m fastpull.fuse_client.page_warmer BOOTSTRAP ROOTFS    < ranges of the device

Standard input holds pairs of u64, little-endian: offset and length on the device, in the order of the plan. They are
turned into ranges of files with the bootstrap, because the kernel caches files, not the device. Never done by
the daemon itself: it would wait in the kernel for its own answers (``session/server.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import struct
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from fastpull.image.erofs.reader import Bootstrap, Inode

RANGE = struct.Struct("<QQ")
KEEP_FREE = 0.25  # of all memory: a warm cache must never push anybody out of his
LOOK_BYTES = 64 << 20  # between two looks at the memory that is left
_BLOCK = 4096  # files begin on one
_STEP_BYTES = 128 << 10  # of one request more is not read than the kernel reads ahead by default


class Place(NamedTuple):
    """Where a file's content lies on the device."""

    offset: int
    size: int
    path: bytes


def places(bootstrap: Bootstrap) -> list[Place]:
    """All files with content, by their place. Of hardlinks one path is enough."""
    found: dict[int, Place] = {}
    todo: list[tuple[bytes, Inode]] = [(b"", bootstrap.inode(bootstrap.root))]
    while todo:
        path, inode = todo.pop()
        for entry in bootstrap.listdir(inode):
            child = bootstrap.inode(entry.nid)
            name = path + b"/" + entry.name
            if child.is_directory:
                todo.append((name, child))
            elif stat.S_ISREG(child.mode) and child.size:
                extent = bootstrap.content(child)
                found.setdefault(extent.offset, Place(extent.offset, extent.size, name))
    return sorted(found.values())


def file_ranges(ranges: Iterable[tuple[int, int]], order: Sequence[Place]) -> Iterator[tuple[bytes, int, int]]:
    """Ranges of the device as ranges of files: path, offset, length. Pure; what no file holds is left out."""
    starts = [place.offset for place in order]
    for offset, length in ranges:
        for at in range(max(0, bisect_right(starts, offset) - 1), bisect_left(starts, offset + length)):
            place = order[at]
            first = max(offset, place.offset)
            last = min(offset + length, place.offset + place.size)
            if first < last:
                yield place.path, first - place.offset, last - first


def joined(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Each range that begins where the one before it ended, block for block, is one with it."""
    begin = end = 0
    for offset, length in ranges:
        if offset != -(-end // _BLOCK) * _BLOCK:
            if end > begin:
                yield begin, end - begin
            begin = offset
        end = offset + length
    if end > begin:
        yield begin, end - begin


def memory_allows() -> bool:
    """Whether more than ``KEEP_FREE`` of the memory can still be had."""
    numbers = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(numbers[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
    return available > total * KEEP_FREE


async def warm(bootstrap: Path, rootfs: Path, ranges: Iterable[tuple[int, int]]) -> None:
    """Run the process and wait for its end. Cancelling ends it. Failures cost only the warmth."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "fastpull.fuse_client.page_warmer",
        str(bootstrap),
        str(rootfs),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        await process.communicate(b"".join(RANGE.pack(*one) for one in ranges))
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()


def main(argv: Sequence[str]) -> int:
    os.nice(10)
    with Bootstrap.open(Path(argv[1]).read_bytes()) as bootstrap:
        order = places(bootstrap)
    left = 0
    for path, offset, length in file_ranges(joined(RANGE.iter_unpack(sys.stdin.buffer.read())), order):
        left -= length
        if left <= 0:
            if not memory_allows():
                return 0
            left = LOOK_BYTES
        with contextlib.suppress(OSError):
            fd = os.open(os.fsencode(argv[2]) + path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                for start in range(offset, offset + length, _STEP_BYTES):
                    step = min(_STEP_BYTES, offset + length - start)
                    os.posix_fadvise(fd, start, step, os.POSIX_FADV_WILLNEED)
            finally:
                os.close(fd)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
