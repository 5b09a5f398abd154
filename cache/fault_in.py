"""Mapped pages, made present before anybody touches them: where the disk fails that is an error, not the end.

A process that touches a page which the disk can not give dies of SIGBUS. And writev(2) to ``/dev/fuse`` faults in
what is not present, but a process that is being killed can not fault any more: the copy stops, and the kernel ends
the request with EIO. Seen with 60 kills of a daemon that answered out of a map: 8 reads failed. Out of pages that are
present, the copy goes through to its end whoever dies, and a kill before it leaves the request to the next daemon.

Costs 1 us for each buffer, and for pages that are present already 2 us and 40 more for each MiB; the faults that
it takes, writev would have taken.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Iterable

_MADV_POPULATE_READ = 22  # Linux 5.14
_EHWPOISON = 133  # a memory error; not in `errno`
_PAGE = mmap.PAGESIZE


class _Buffer(ctypes.Structure):
    """``Py_buffer``, of the stable ABI since Python 3.11."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_get_buffer = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.c_void_p, ctypes.c_int)
_release = ctypes.pythonapi.PyBuffer_Release
_release.argtypes = (ctypes.c_void_p,)
_release.restype = None
_libc = ctypes.CDLL(None, use_errno=True)
_madvise = _libc.madvise
_madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class _View(threading.local):
    """One for each thread: a new one for each buffer would cost as much as the rest."""

    def __init__(self) -> None:
        self.buffer = _Buffer()
        self.address = ctypes.addressof(self.buffer)


_view = _View()


def fault_in(buffers: Iterable[bytes | memoryview]) -> None:
    """Make present what the buffers show of mapped files; those over memory of Python's own are left alone.

    Blocks for the disk, without the GIL. Raise ``OSError`` (EFAULT) where the disk can not give a page; a page that
    was given stays for those who touch it next. Does nothing on kernels before 5.14.
    """
    start = end = 0
    view, address = _view.buffer, _view.address
    for buffer in buffers:
        if type(buffer) is bytes or type(buffer.obj) is bytes or type(buffer.obj) is bytearray:  # type: ignore[union-attr]
            continue
        _get_buffer(buffer, address, 0)
        first, size = view.buf or 0, view.len
        _release(address)
        last = first + size
        first -= first % _PAGE
        if start <= first <= end:  # chunks that were stored together lie together
            end = max(end, last)
        else:
            _populate(start, end)
            start, end = first, last
    _populate(start, end)


def _populate(start: int, end: int) -> None:
    if start < end and _madvise(start, end - start, _MADV_POPULATE_READ) != 0:
        code = ctypes.get_errno()
        if code in (errno.EFAULT, _EHWPOISON):
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
