"""Loop devices: a file as a block device, for kernels whose EROFS mounts block devices only.

Opening a file that lies on our own FUSE mount blocks: only in a process of its own (``mount_process.py``).
Source of the numbers: ``include/uapi/linux/loop.h``; LOOP_CONFIGURE came with Linux 5.8.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastpull.fuse_client.drivers.errors import MountError

_CONTROL = Path("/dev/loop-control")
_SET_FD_TRIES = 64  # somebody else may take the free device before us

_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LOOP_CLR_FD = 0x4C01

# struct loop_config: u32 fd, u32 block_size, struct loop_info64, u64[8] reserved. Of loop_info64 (232 bytes):
# u64 device, inode, rdevice, offset, sizelimit, u32 number, encrypt_type, encrypt_key_size, flags, the name
# (64 bytes, for losetup -l), and 112 bytes that are zero for us.
_CONFIG = struct.Struct("<II 5Q 4I 64s 112x 64x")
_BLOCK_BYTES = 4096


class LoopFlag(enum.IntFlag):
    """``LO_FLAGS_*``."""

    READ_ONLY = 1
    AUTOCLEAR = 4  # detached when the last user closes it
    DIRECT_IO = 16  # past the page cache of the file below


@contextmanager
def attached(file: Path, *, direct_io: bool = True) -> Iterator[Path]:
    """A read-only loop device over ``file``. It lives as long as the block or a mount of it does.

    ``direct_io`` is asked for and done without where the file can not. Raise ``MountError``.
    """
    try:
        backing = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as exc:
        raise MountError("attach a loop device to", file, exc.errno or 0) from exc
    try:
        device, fd = _attach(backing, file, direct_io=direct_io)
    except OSError as exc:
        raise MountError("attach a loop device to", file, exc.errno or 0) from exc
    finally:
        os.close(backing)
    try:
        yield device
    finally:
        os.close(fd)


def _attach(backing: int, file: Path, *, direct_io: bool) -> tuple[Path, int]:
    flags = LoopFlag.READ_ONLY | LoopFlag.AUTOCLEAR
    if direct_io:
        flags |= LoopFlag.DIRECT_IO
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(_SET_FD_TRIES):
            device = Path(f"/dev/loop{fcntl.ioctl(control, _LOOP_CTL_GET_FREE)}")
            fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _configure(fd, backing, file, flags)
            except OSError as exc:
                os.close(fd)
                if exc.errno == errno.EBUSY:
                    continue
                if exc.errno == errno.EINVAL and flags & LoopFlag.DIRECT_IO:
                    flags &= ~LoopFlag.DIRECT_IO
                    continue
                raise
            return device, fd
    finally:
        os.close(control)
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


def _configure(fd: int, backing: int, file: Path, flags: LoopFlag) -> None:
    name = os.fsencode(file)[:63]
    fcntl.ioctl(fd, _LOOP_CONFIGURE, _CONFIG.pack(backing, _BLOCK_BYTES, 0, 0, 0, 0, 0, 0, 0, 0, flags, name))


def detach(device: Path) -> None:
    """Detach a loop device now, or when its last user closes it. Raise ``MountError``."""
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, _LOOP_CLR_FD)
        finally:
            os.close(fd)
    except OSError as exc:
        raise MountError("detach", device, exc.errno or 0) from exc
