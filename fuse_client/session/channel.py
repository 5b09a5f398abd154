"""The descriptor of ``/dev/fuse``: requests out of it, answers into it."""

from __future__ import annotations

import errno
import logging
import os

from fastpull.fuse_client.session.answers import answer_header, error_answer, resend_notice
from fastpull.fuse_client.session.errors import ChannelClosedError
from fastpull.fuse_client.session.files import Buffers
from fastpull.fuse_client.session.protocol import MIN_BUFFER

log = logging.getLogger(__name__)

_IOV_MAX = 1024  # buffers of one writev

# ENODEV: unmounted. ECONNABORTED: aborted through fusectl. EBADF: closed by us.
_CLOSED = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.EBADF})


class Channel:
    """Owns one descriptor of a FUSE connection that has gone through INIT.

    Sending never fails for the caller: an answer that the kernel does not want any more is dropped, and one
    that can not be written becomes EIO for that request. Used on one thread.
    """

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._buffer = bytearray(MIN_BUFFER)
        self._view = memoryview(self._buffer)

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def fileno(self) -> int:
        return self._fd

    def receive(self) -> memoryview | None:
        """The next request, valid until the next call; None = none waits. Raise ``ChannelClosedError``."""
        while True:
            try:
                return self._view[: os.readv(self._fd, [self._buffer])]
            except BlockingIOError:
                return None
            except OSError as exc:
                if exc.errno in _CLOSED:
                    raise ChannelClosedError(exc.strerror or str(exc)) from exc
                if exc.errno not in (errno.EINTR, errno.ENOENT):  # ENOENT: withdrawn while we read it
                    raise

    def send(self, unique: int, buffers: Buffers, length: int) -> None:
        """Answer with ``buffers``, ``length`` bytes in total, copied before this returns."""
        if len(buffers) >= _IOV_MAX:
            buffers = (b"".join(buffers),)
        try:
            os.writev(self._fd, (answer_header(unique, length), *buffers))
        except OSError as exc:
            if exc.errno == errno.ENOENT or exc.errno in _CLOSED:
                return  # the caller was killed, or the mount is gone
            # EFAULT: a page of the store's memory map could not be read from the disk.
            log.warning("answer of %d bytes to request %#x failed: %s", length, unique, exc.strerror)
            self.fail(unique, errno.EIO)

    def fail(self, unique: int, code: int) -> None:
        """Answer with an errno."""
        try:
            os.write(self._fd, error_answer(unique, code))
        except OSError as exc:
            if exc.errno != errno.ENOENT and exc.errno not in _CLOSED:
                log.warning("error answer %d to request %#x failed: %s", code, unique, exc.strerror)

    def request_resend(self) -> bool:
        """Have every request queued again that was read and not answered. False = the kernel can not."""
        try:
            os.write(self._fd, resend_notice())
        except OSError as exc:
            if exc.errno == errno.EINVAL:
                return False
            if exc.errno in _CLOSED:
                raise ChannelClosedError(exc.strerror or str(exc)) from exc
            raise
        return True

    def close(self) -> None:
        """Close the descriptor; what is sent afterwards goes nowhere."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
