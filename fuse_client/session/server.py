"""Serves devices to the kernel: one FUSE mount, one flat directory, one read-only file per chain.

Everything happens on the event loop's thread. What is in memory is answered within the callback that read the
request, without creating a task; what has to come from the disk or the proxy becomes a task. Every request is
answered exactly once, whatever the device does, with one exception on purpose: ``aclose(hand_over=True)`` leaves
open requests to the next daemon, which gets them from the kernel (FUSE_NOTIFY_RESEND) or out of the journal.

The process that runs a session must never touch the mount itself, nor anything whose data comes through it,
from any of its own threads: killed at the wrong moment it would wait in the kernel for an answer of its own,
keep its lock, and so keep away the successor that could give the answer.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from fastpull.cache.tasks import Tasks
from fastpull.fuse_client.session import answers
from fastpull.fuse_client.session.channel import Channel, Connection
from fastpull.fuse_client.session.directory import Directory, Node
from fastpull.fuse_client.session.errors import ChannelClosedError, ProtocolError
from fastpull.fuse_client.session.files import Buffers, DeviceFile, DeviceReadError
from fastpull.fuse_client.session.protocol import (
    ROOT_ID,
    UNANSWERED,
    Change,
    GetAttr,
    Lookup,
    Notice,
    Open,
    OpenDir,
    Read,
    ReadDir,
    Request,
    StatFs,
    parse,
)

log = logging.getLogger(__name__)

_BATCH = 16  # requests per turn of the event loop: at most 16 MiB of answers, some 5 ms
_REPORT_SECONDS = 10.0  # at most one log line about failed reads in this time
_ATTR_VALID_SECONDS = 3600

# Past the FUSE file's page cache: the pages of EROFS on top of it are the cache. 2.5 GB/s against 0.6 GB/s with
# KEEP_CACHE; equal to EROFS's own option `directio`, but also there on kernels before that, and for loop devices.
_OPEN_FLAGS = answers.OpenFlag.DIRECT_IO


class SessionStats(msgspec.Struct):
    """Counters since the session began."""

    requests: int = 0
    reads: int = 0
    read_bytes: int = 0
    misses: int = 0  # reads that became tasks: from the disk or the proxy
    failed_reads: int = 0


class Answer:
    """The one answer to a READ of ``length`` bytes."""

    __slots__ = ("_channel", "given", "length", "unique")

    def __init__(self, channel: Channel, unique: int, length: int) -> None:
        self._channel = channel
        self.unique = unique
        self.length = length
        self.given = False

    def data(self, buffers: Buffers) -> None:
        """Answer with the bytes. A wrong number of them becomes EIO: EROFS would read zeros instead."""
        if self.given:
            log.error("second answer to request %#x dropped", self.unique)
            return
        total = sum(memoryview(buffer).nbytes for buffer in buffers)
        if total != self.length:
            log.error("a device gave %d bytes for a read of %d; the read fails", total, self.length)
            self.error(errno.EIO)
            return
        self.given = True
        self._channel.send(self.unique, buffers, total)

    def error(self, code: int) -> None:
        if not self.given:
            self.given = True
            self._channel.fail(self.unique, code)


class FuseSession:
    """Serves registered devices on a FUSE connection. Owns its descriptors.

    ``resumed``: an earlier daemon served this mount. Requests that it left open are answered, and one for
    a device that is not registered yet waits for it, at most ``grace_seconds``.
    """

    def __init__(self, connection: Connection, *, resumed: bool = False, grace_seconds: float = 30.0) -> None:
        self._channel = Channel(connection)
        self._directory = Directory()
        self._tasks = Tasks()
        self._resumed = resumed
        self._grace_seconds = grace_seconds
        self._settled = not resumed
        self._settle_timer: asyncio.TimerHandle | None = None
        self._parked: list[Request] = []
        self._handing_over = False
        self._ended: asyncio.Future[str | None] | None = None
        self._unreported = 0
        self._reported_at = -_REPORT_SECONDS
        self.stats = SessionStats()
        self._handlers: dict[type[Request], Callable[[Any], None]] = {
            Read: self._read,
            Lookup: self._lookup,
            GetAttr: self._getattr,
            Open: self._open,
            OpenDir: self._opendir,
            ReadDir: self._readdir,
            StatFs: self._statfs,
            Notice: self._notice,
            Change: partial(self._refuse, code=errno.EROFS),
        }

    def __repr__(self) -> str:
        state = "closed" if self._channel.closed else "settled" if self._settled else "settling"
        return f"<FuseSession {state}, {len(self._directory)} devices, {len(self._tasks)} reads waiting>"

    @property
    def waiting(self) -> int:
        """Reads that wait for their bytes."""
        return len(self._tasks)

    # -- life ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to answer. Register the known devices before, so that nothing has to wait for them.

        Raise ``ChannelClosedError`` when the mount is gone already.
        """
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        left = self._channel.begin(resumed=self._resumed)
        if self._resumed:
            self._settle_timer = loop.call_later(self._grace_seconds, self.settle)
        loop.add_reader(self._channel.fileno(), self._on_readable)
        for request in left:
            self._receive(memoryview(request))

    def settle(self) -> None:
        """Say that every device of the earlier daemon is registered: what is unknown now fails."""
        if self._settled:
            return
        self._settled = True
        if self._settle_timer is not None:
            self._settle_timer.cancel()
        self._retry_parked()

    async def ended(self) -> str | None:
        """Wait until the mount is gone from under the session, and return why; None = ``aclose`` was called."""
        assert self._ended is not None, "the session was not started"
        return await asyncio.shield(self._ended)

    async def aclose(self, *, hand_over: bool = True) -> None:
        """Stop answering and close the descriptor. The mount itself stays.

        ``hand_over``: open requests stay open for the next daemon. Otherwise they fail with EIO, which is
        right before unmounting. Close the session before what its devices need.
        """
        if self._channel.closed:
            return
        self._handing_over = hand_over
        if self._ended is not None:
            asyncio.get_running_loop().remove_reader(self._channel.fileno())
            if not self._ended.done():
                self._ended.set_result(None)
        if self._settle_timer is not None:
            self._settle_timer.cancel()
        await self._tasks.aclose()
        await asyncio.sleep(0)  # callbacks of the cancelled tasks answer
        if not hand_over:
            for request in self._parked:
                self._channel.fail(request.unique, errno.EIO)
        self._parked.clear()
        self._channel.close()

    # -- devices -------------------------------------------------------------------------------------

    def add(self, name: str, device: DeviceFile) -> int:
        """Serve ``device`` as the file ``name``, replacing what had the name. Return its node id.

        Raise ``ValueError`` for what is no file name.
        """
        node = self._directory.add(name, device)
        self._retry_parked()
        return node.id

    def remove(self, name: str) -> None:
        """Serve the name no longer: reads of files that are still open fail. Unmount what uses it before."""
        self._directory.remove(name)

    # -- requests ------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        try:
            for _ in range(_BATCH):
                data = self._channel.receive()
                if data is None:
                    return
                self._receive(data)
        except ChannelClosedError as exc:
            self._end(str(exc))
        except OSError as exc:
            log.exception("reading /dev/fuse failed")
            self._end(str(exc))

    def _end(self, reason: str) -> None:
        asyncio.get_running_loop().remove_reader(self._channel.fileno())
        log.error("%s", reason)
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(reason)

    def _receive(self, data: memoryview) -> None:
        try:
            request = parse(data)
        except ProtocolError as exc:
            log.warning("%s", exc)
            if exc.unique:
                self._channel.fail(exc.unique, errno.EIO)
            return
        self.stats.requests += 1
        self._dispatch(request)

    def _dispatch(self, request: Request) -> None:
        if isinstance(request, UNANSWERED):
            return  # an interrupted read is answered when its bytes are there; its caller may be gone by then
        handler = self._handlers.get(type(request))
        try:
            if handler is None:
                self._refuse(request, errno.ENOSYS)
            else:
                handler(request)
        except Exception:
            log.exception("%s failed", type(request).__name__)
            self._refuse(request, errno.EIO)

    def _refuse(self, request: Request, code: int) -> None:
        self._channel.fail(request.unique, code)

    def _send(self, request: Request, body: bytes = b"") -> None:
        self._channel.send(request.unique, (body,), len(body))

    def _unknown(self, request: Request, code: int) -> None:
        """The node or name is not registered: wait for it while the session settles, else fail."""
        if self._settled:
            self._refuse(request, code)
        else:
            self._channel.hold(request.unique)
            self._parked.append(request)

    def _retry_parked(self) -> None:
        parked, self._parked = self._parked, []
        for request in parked:
            self._dispatch(request)

    def _lookup(self, request: Lookup) -> None:
        node = self._directory.find(request.name) if request.node == ROOT_ID else None
        if node is None:
            self._unknown(request, errno.ENOENT)
        else:
            self._send(request, answers.entry_body(node.attributes, attr_valid_seconds=_ATTR_VALID_SECONDS))

    def _getattr(self, request: GetAttr) -> None:
        node = self._directory if request.node == ROOT_ID else self._directory.get(request.node)
        if node is None:
            self._unknown(request, errno.ESTALE)
        else:
            self._send(request, answers.attr_body(node.attributes, attr_valid_seconds=_ATTR_VALID_SECONDS))

    def _open(self, request: Open) -> None:
        if request.flags & os.O_ACCMODE != os.O_RDONLY:
            self._refuse(request, errno.EROFS)
        elif self._directory.get(request.node) is None:
            self._unknown(request, errno.ESTALE)
        else:
            self._send(request, answers.open_body(_OPEN_FLAGS))

    def _opendir(self, request: OpenDir) -> None:
        self._send(request, answers.open_body(answers.OpenFlag(0)))

    def _readdir(self, request: ReadDir) -> None:
        self._send(request, answers.readdir_body(self._directory.entries(request.offset), request.size))

    def _statfs(self, request: StatFs) -> None:
        total = sum(node.device.size for node in self._directory)
        self._send(request, answers.statfs_body(total_bytes=total, files=len(self._directory)))

    def _notice(self, request: Notice) -> None:
        self._send(request)

    # -- reading -------------------------------------------------------------------------------------

    def _read(self, request: Read) -> None:
        node = self._directory.get(request.node)
        if node is None:
            self._unknown(request, errno.EIO)
            return
        answer = Answer(self._channel, request.unique, max(0, min(request.size, node.device.size - request.offset)))
        self.stats.reads += 1
        self.stats.read_bytes += answer.length
        if answer.length == 0:
            answer.data(())
            return
        try:
            local = node.device.try_read(request.offset, answer.length, answer.data)
        except Exception:
            log.exception("%s: looking for %d bytes at %d failed", node.name.decode(), answer.length, request.offset)
            answer.error(errno.EIO)
            return
        if local or answer.given:
            answer.error(errno.EIO)  # says nothing unless the device broke its promise to have answered
            return
        self.stats.misses += 1
        self._channel.hold(request.unique)
        task = self._tasks.spawn(self._fetch(node, request.offset, answer), name=f"read {request.unique:#x}")
        # A callback, not a finally: a task cancelled before its first step never enters its body.
        task.add_done_callback(lambda _: self._fetched(answer))

    async def _fetch(self, node: Node, offset: int, answer: Answer) -> None:
        try:
            answer.data(await node.device.read(offset, answer.length))
        except DeviceReadError as exc:
            if not self._handing_over:
                answer.error(errno.EIO)
                self._report(node, offset, answer.length, exc)
        except Exception:
            log.exception("%s: reading %d bytes at %d failed", node.name.decode(), answer.length, offset)

    def _fetched(self, answer: Answer) -> None:
        if not answer.given and not self._handing_over:
            answer.error(errno.EIO)

    def _report(self, node: Node, offset: int, length: int, exc: DeviceReadError) -> None:
        self.stats.failed_reads += 1
        self._unreported += 1
        now = asyncio.get_running_loop().time()
        if now - self._reported_at < _REPORT_SECONDS:
            return
        log.warning(
            "%s: %d bytes at %d can not be read: %s (%d failed reads since the last line like this)",
            node.name.decode(),
            length,
            offset,
            exc,
            self._unreported,
        )
        self._reported_at, self._unreported = now, 0
