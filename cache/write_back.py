"""Having the disk write while more is being made, instead of all at the end.

The kernel begins by itself when a tenth of the memory is dirty, or after half a minute. An ingest of 3.4 GB of blobs
and as many of chunks is over before that, and then waited for the disk for 8 to 10 of its 60 seconds.
"""

from __future__ import annotations

import ctypes

_STEP_BYTES = 4 << 20  # large enough for any disk, and what is left over is soon written
_WRITE = 2  # SYNC_FILE_RANGE_WRITE

_libc = ctypes.CDLL(None, use_errno=True)
_libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def start_writing(descriptor: int, start: int, end: int) -> None:
    """Have the disk begin with the steps of 4 MiB that were completed by writing a file from ``start`` to ``end``.

    Promises nothing and raises nothing: what must not be lost needs ``fdatasync`` all the same, which tells of errors.
    May wait where the disk has more to do than it takes on.
    """
    first, last = start // _STEP_BYTES * _STEP_BYTES, end // _STEP_BYTES * _STEP_BYTES
    if first < last:  # a length of 0 would mean all that follows
        _libc.sync_file_range(descriptor, first, last - first, _WRITE)
