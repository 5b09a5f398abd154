"""The descriptor of ``/dev/fuse``: requests out of it, answers into it."""

from __future__ import annotations

import errno
import logging
import os
from typing import NamedTuple

from fastpull.fuse_client.session.answers import answer_header, error_answer, resend_notice
from fastpull.fuse_client.session.errors import ChannelClosedError
from fastpull.fuse_client.session.files import Buffers
from fastpull.fuse_client.session.journal import RequestJournal

log = logging.getLogger(__name__)

_IOV_MAX = 1024  # buffers of one writev

# ENODEV: unmounted. ECONNABORTED: aborted through fusectl. EBADF: closed by us.
_CLOSED = frozenset({errno.ENODEV, errno.ECONNABORTED, errno.EBADF})


class Connection(NamedTuple):
    """What the FUSE connection of a mount is, beyond the life of a daemon: two descriptors."""

    fuse: int  # /dev/fuse, gone through INIT
    requests: int  # memory for a ``RequestJournal``


class Channel:
    """Owns a FUSE connection.

    Sending never fails for the caller: an answer that the kernel does not want any more is dropped, and one that can
    not be written becomes EIO for that request. Used on one thread.
    """

    def __init__(self, connection: Connection) -> None:
        self._fd = connection.fuse
        self._journal = RequestJournal(connection.requests)
        os.set_blocking(self._fd, False)

    @property
    def closed(self) -> bool:
        return self._fd < 0

    def fileno(self) -> int:
        return self._fd

    def begin(self, *, resumed: bool) -> list[bytes]:
        """Become the one who answers. Return the requests that an earlier daemon left open, as far as the kernel
        does not send them again by itself. Raise ``ChannelClosedError``.
        """
        return self._journal.begin(adopt=resumed and not self._request_resend())

    def receive(self) -> memoryview | None:
        """The next request, valid until the next call; None = none waits. Raise ``ChannelClosedError``."""
        buffer = self._journal.buffer
        while True:
            try:
                return buffer[: os.readv(self._fd, (buffer,))]
            except BlockingIOError:
                return None
            except OSError as exc:
                if exc.errno in _CLOSED:
                    raise ChannelClosedError(exc.strerror or str(exc)) from exc
                if exc.errno not in (errno.EINTR, errno.ENOENT):  # ENOENT: withdrawn while we read it
                    raise

    def hold(self, unique: int) -> None:
        """The request just received, or returned by ``begin``, is answered later, if need be by another daemon."""
        self._journal.hold(unique)

    def send(self, unique: int, buffers: Buffers, length: int) -> None:
        """Answer with ``buffers``, ``length`` bytes in total, copied before this returns.

        Out of memory that is present: were the process killed in the middle of a copy out of a mapped file, it could
        not fault in the rest, and the kernel would end the request with EIO.
        """
        if len(buffers) >= _IOV_MAX:
            buffers = (b"".join(buffers),)
        try:
            os.writev(self._fd, (answer_header(unique, length), *buffers))
        except OSError as exc:
            if exc.errno == errno.ENOENT or exc.errno in _CLOSED:
                return  # the caller was killed, or the mount is gone
            log.warning("answer of %d bytes to request %#x failed: %s", length, unique, exc.strerror)
            self.fail(unique, errno.EIO)
        finally:
            self._journal.release(unique)

    def fail(self, unique: int, code: int) -> None:
        """Answer with an errno."""
        try:
            os.write(self._fd, error_answer(unique, code))
        except OSError as exc:
            if exc.errno != errno.ENOENT and exc.errno not in _CLOSED:
                log.warning("error answer %d to request %#x failed: %s", code, unique, exc.strerror)
        finally:
            self._journal.release(unique)

    def _request_resend(self) -> bool:
        """Have every request queued again that was read and not answered. False = the kernel can not (< 6.9)."""
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
