"""A FUSE file system of one file, ``disk``, for a loop device: it fails when it is told to.

    python -P failing_disk_server.py MOUNTPOINT BACKING_FILE ORDERS

``ORDERS`` is a directory: a file ``reads`` or ``writes`` in it makes these fail with EIO, until it is removed.
"""

from __future__ import annotations

import asyncio
import errno
import os
import stat
import sys
from pathlib import Path

import pyfuse3
import pyfuse3.asyncio

_DISK = 2


class FailingDisk(pyfuse3.Operations):  # type: ignore[misc]  # pyfuse3 has no types
    def __init__(self, backing: Path, orders: Path) -> None:
        super().__init__()
        self._fd = os.open(backing, os.O_RDWR)
        self._fail_reads = orders / "reads"
        self._fail_writes = orders / "writes"

    async def getattr(self, inode: int, ctx: object = None) -> pyfuse3.EntryAttributes:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = inode
        is_disk = inode == _DISK
        attributes.st_mode = (stat.S_IFREG | 0o600) if is_disk else (stat.S_IFDIR | 0o700)
        attributes.st_size = os.fstat(self._fd).st_size if is_disk else 0
        return attributes

    async def setattr(self, inode: int, attr: object, fields: object, fh: object, ctx: object) -> object:
        return await self.getattr(inode)

    async def lookup(self, parent: int, name: bytes, ctx: object = None) -> pyfuse3.EntryAttributes:
        if name != b"disk":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(_DISK)

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        # No cache of ours: the only one is that of the file system on the loop device.
        return pyfuse3.FileInfo(fh=_DISK, direct_io=True)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        if self._fail_reads.exists():
            raise pyfuse3.FUSEError(errno.EIO)
        return os.pread(self._fd, size, offset)

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        if self._fail_writes.exists():
            raise pyfuse3.FUSEError(errno.EIO)
        return os.pwrite(self._fd, data, offset)

    async def fsync(self, fh: int, datasync: bool) -> None:
        if self._fail_writes.exists():
            raise pyfuse3.FUSEError(errno.EIO)


def main(point: str, backing: str, orders: str) -> None:
    pyfuse3.asyncio.enable()
    pyfuse3.init(FailingDisk(Path(backing), Path(orders)), point, {"fsname=failing-disk"})
    print("ready", flush=True)
    try:
        asyncio.run(pyfuse3.main())
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
