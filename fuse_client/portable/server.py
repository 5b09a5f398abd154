"""The daemon's side of ``RUN_DIR/portable.sock``: answers the children of the portable driver.

A child asks only for what the store lacks, so that every fetch of the node, whoever needs it, goes through the one
scheduler: single flight, priorities, trace and the writes to the cache are the same for all drivers.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Protocol

from fastpull.cache.tasks import Tasks
from fastpull.fuse_client.portable import frames
from fastpull.fuse_client.portable.errors import FrameError
from fastpull.fuse_client.portable.frames import Head, Kind
from fastpull.fuse_client.session.files import Buffers, DeviceFile, DeviceReadError

log = logging.getLogger(__name__)

SOCKET_NAME = "portable.sock"

_HELLO_SECONDS = 10.0
_SEND_SECONDS = 60.0  # a child that takes no answer for so long is hung up on
_REPORT_SECONDS = 10.0  # between two lines about failed reads
_UCRED = struct.Struct("iII")  # pid, uid, gid


class SharedDevice(DeviceFile, Protocol):
    """``ChainDevice``: a device that is read here and, out of the store, by its child."""

    on_forget: Callable[[], None]

    def used_elsewhere(self, indexes: Iterable[int], reads: int) -> None: ...


class PortableServer:
    """Serves registered devices to children, by the names that they have in the session too (hex chainIDs).

    Children of an earlier daemon connect by themselves. Only our own user and root are served.
    """

    def __init__(self) -> None:
        self._devices: dict[str, SharedDevice] = {}
        self._connections: defaultdict[str, set[_Connection]] = defaultdict(set)
        self._tasks = Tasks()
        self.on_hangup: Callable[[], None] = lambda: None  # a child may have died

    @property
    def children(self) -> int:
        """How many are connected."""
        return sum(map(len, self._connections.values()))

    def add(self, name: str, device: SharedDevice) -> None:
        self._devices[name] = device
        device.on_forget = partial(self._forget, name)

    def remove(self, name: str) -> None:
        """Its children are hung up on: what they still read can only come from the store."""
        if self._devices.pop(name, None) is not None:
            for connection in list(self._connections[name]):
                connection.close()

    @contextlib.asynccontextmanager
    async def listen(self, run_dir: Path) -> AsyncIterator[Path]:
        """Serve until the block ends. The caller holds the lock of ``run_dir``."""
        path = run_dir / SOCKET_NAME
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        try:
            old = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(old)
            server = await asyncio.start_unix_server(self._serve, sock=listener, limit=64 * 1024)
        except BaseException:
            listener.close()
            raise
        try:
            yield path
        finally:
            server.close()
            for connections in list(self._connections.values()):
                for connection in list(connections):
                    connection.close()
            await self._tasks.aclose()
            path.unlink(missing_ok=True)

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _ = self._tasks.spawn(self._connection(reader, writer), name="child of the portable driver")

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = ""
        connection = _Connection(reader, writer, self._tasks)
        try:
            if not _is_ours(writer):
                raise FrameError("another user")
            async with asyncio.timeout(_HELLO_SECONDS):
                name = frames.unpack_hello(await reader.readexactly(frames.HELLO_BYTES)).hex
            device = self._devices.get(name)
            writer.write(frames.pack_answer(device.size if device else 0))
            if device is not None:
                self._connections[name].add(connection)
                await connection.run(lambda: self._devices.get(name))
        except FrameError as exc:
            log.warning("a connection to %s was refused: %s", SOCKET_NAME, exc)
        except (OSError, EOFError, TimeoutError) as exc:
            log.debug("child of %s: %s", name[:12], exc)
        finally:
            self._connections[name].discard(connection)
            if not self._connections[name]:
                del self._connections[name]
            connection.close()
            self.on_hangup()

    def _forget(self, name: str) -> None:
        for connection in self._connections.get(name, ()):
            connection.send(frames.pack_head(Kind.AGAIN, 0))


class _Connection:
    """One child. Its reads are answered in any order; at most ``MAX_WAITING`` at a time, then it is not listened to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, tasks: Tasks) -> None:
        self._reader = reader
        self._writer = writer
        self._tasks = tasks
        self._places = asyncio.Semaphore(frames.MAX_WAITING)
        self._reads: set[asyncio.Task[None]] = set()
        self._reported_at = -_REPORT_SECONDS

    def send(self, data: bytes) -> None:
        if not self._writer.is_closing():
            self._writer.write(data)

    def close(self) -> None:
        for read in self._reads:
            read.cancel()
        self._writer.close()

    async def run(self, device_now: Callable[[], SharedDevice | None]) -> None:
        """Until the child hangs up. Raise ``FrameError`` for what no child says, ``EOFError`` at the end."""
        while True:
            head = frames.unpack_head(await self._reader.readexactly(frames.HEAD_BYTES), from_child=True)
            body = await self._reader.readexactly(head.body_bytes) if head.body_bytes else b""
            device = device_now()
            if device is None:
                raise EOFError("its chain is gone")
            if head.kind is Kind.USED:
                device.used_elsewhere(frames.unpack_used(body), head.id)
                continue
            if head.offset + head.number > device.size:
                raise FrameError(f"a read of {head.number} bytes at {head.offset} of {device.size}")
            if not self._try_read(device, head):
                await self._places.acquire()
                read = self._tasks.spawn(self._read(device, head), name=f"read {head.id} of a child")
                self._reads.add(read)
                # A callback, not a finally: a task cancelled before its first step never enters its body.
                read.add_done_callback(self._read_done)
            async with asyncio.timeout(_SEND_SECONDS):
                await self._writer.drain()

    def _read_done(self, read: asyncio.Task[None]) -> None:
        self._reads.discard(read)
        self._places.release()

    def _try_read(self, device: SharedDevice, head: Head) -> bool:
        """What came into the store since the child looked."""
        return device.try_read(head.offset, head.number, partial(self._answer, head))

    async def _read(self, device: SharedDevice, head: Head) -> None:
        try:
            self._answer(head, await device.read(head.offset, head.number))
        except DeviceReadError as exc:
            self._fail(head, exc)
        except Exception:
            log.exception("reading %d bytes at %d for a child failed", head.number, head.offset)
            self._fail(head, None)

    def _answer(self, head: Head, buffers: Buffers) -> None:
        # Joined: the buffers may lie in a view of the store that ends before the transport has sent them.
        self.send(b"".join((frames.pack_head(Kind.DATA, head.number, head.id), *buffers)))

    def _fail(self, head: Head, exc: DeviceReadError | None) -> None:
        self.send(frames.pack_head(Kind.FAILED, errno.EIO, head.id))
        now = time.monotonic()
        if exc is not None and now - self._reported_at >= _REPORT_SECONDS:
            self._reported_at = now
            log.warning("%d bytes at %d can not be read: %s", head.number, head.offset, exc)


def _is_ours(writer: asyncio.StreamWriter) -> bool:
    peer = writer.get_extra_info("socket")
    _, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return uid in (0, os.geteuid())
