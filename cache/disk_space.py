"""Taking blocks of the disk ahead of need, and giving them back out of the middle of a file."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

BLOCK = 4096
_KEEP_SIZE = 1
_PUNCH_HOLE = 2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def allocate(file: Path, length: int) -> None:
    """Have the first ``length`` bytes of ``file`` take their space on the disk now, without changing its size.

    Does nothing where the file system can not. Raise ``OSError``, as when the disk is full.
    """
    descriptor = os.open(file, os.O_RDWR)
    try:
        _fallocate(descriptor, _KEEP_SIZE, 0, length)
    finally:
        os.close(descriptor)


def punch(descriptor: int, start: int, end: int) -> bool:
    """Give the whole blocks between ``start`` and ``end`` back; they read as zeros from then on.

    ``False`` where the file system can not. Raise ``OSError``.
    """
    start, end = -(-start // BLOCK) * BLOCK, end // BLOCK * BLOCK
    return start >= end or _fallocate(descriptor, _PUNCH_HOLE | _KEEP_SIZE, start, end - start)


def _fallocate(descriptor: int, mode: int, start: int, length: int) -> bool:
    if _libc.fallocate(descriptor, mode, start, length) == 0:
        return True
    code = ctypes.get_errno()
    if code == errno.EOPNOTSUPP:
        return False
    raise OSError(code, os.strerror(code))
