"""Sends parts of a file as the body of an answer, without copying them where the connection allows it.

``web.FileResponse`` is not for blobs: it answers with siblings (``.gz``), with 304, and uvloop has no
``loop.sendfile``. On a plain connection this writes head and body to a duplicate of the socket's descriptor
(an event loop refuses to watch a descriptor that one of its transports owns), the body by sendfile(2). A
connection with TLS gets pieces through aiohttp.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

_SENDFILE_BYTES = 2**20  # a call; then the other connections have their turn
_PIECE_BYTES = 256 * 1024
_USER_TIMEOUT_MS = 300_000  # a client that takes no byte for so long is gone (tcp(7), TCP_USER_TIMEOUT)
_REASONS = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n" for status in HTTPStatus}


class FileResponse(web.StreamResponse):
    """An answer whose body comes out of a file, piece by piece.

    Use: ``begin``, then ``send`` until ``Content-Length`` bytes are out, then return it. If the bytes can not
    be had, ``cut``: the connection is closed and the client sees that the body is short. Returning it short
    without that cuts too: a connection that stays open would leave the client waiting, or feed it the head
    of the next answer as body.
    """

    def __init__(self, status: int, headers: Mapping[str, str], length: int) -> None:
        super().__init__(status=status)
        self._fixed_headers = headers
        self._length = length
        self._sent = 0
        self._is_begun = False
        self._is_cut = False
        self._request: web.BaseRequest | None = None
        self._socket: socket.socket | None = None

    # -- what aiohttp asks ---------------------------------------------------------------------------------

    @property
    def prepared(self) -> bool:
        return self._is_begun

    @property
    def keep_alive(self) -> bool | None:
        return not self._is_cut and self._request is not None and self._request.keep_alive

    @property
    def body_length(self) -> int:
        return self._sent

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        await self.begin(request)
        return None

    async def write_eof(self, data: bytes = b"") -> None:  # noqa: ARG002 - the base's signature
        if self._sent != self._length and not self._is_cut:
            self.cut()
        self._close()

    # -- what handlers call --------------------------------------------------------------------------------

    async def begin(self, request: web.BaseRequest) -> None:
        """Send the head. Raise ``ConnectionError`` when the client is gone."""
        if self._is_begun:
            return
        self._is_begun = True
        self._request = request
        transport = request.transport
        if transport is None or transport.is_closing():
            self._is_cut = True
            raise ConnectionResetError("the client is gone")
        while transport.get_write_buffer_size():  # noqa: ASYNC110 - an earlier answer's; no event tells its end
            await asyncio.sleep(0.001)
        head = self._head(request)
        if transport.get_extra_info("ssl_object") is None and self._length:
            plain = transport.get_extra_info("socket")
            self._socket = socket.socket(plain.family, plain.type, plain.proto, os.dup(plain.fileno()))
            await self._send_bytes(head, socket.MSG_MORE)
        else:
            await self._write(head)

    async def send(self, fd: int, start: int, stop: int) -> None:
        """Send these bytes of the file; they are all there. Raise ``ConnectionError``, or ``OSError`` of the disk."""
        assert self._sent + stop - start <= self._length
        if self._socket is None:
            await self._send_pieces(fd, start, stop)
        else:
            await _FileSender(self._socket, fd, start, stop).run()
        self._sent += stop - start

    async def send_bytes(self, data: bytes) -> None:
        """Send bytes that are in no file."""
        assert self._sent + len(data) <= self._length
        if self._socket is None:
            await self._write(data)
        else:
            await self._send_bytes(data, 0)
        self._sent += len(data)

    def cut(self) -> None:
        """Close the connection, and drop what was not sent yet."""
        self._is_cut = True
        self._close()
        if self._request is not None and self._request.transport is not None:
            self._request.transport.abort()

    # -- inside --------------------------------------------------------------------------------------------

    def _head(self, request: web.BaseRequest) -> bytes:
        lines = [_REASONS[self.status]]
        lines += [f"{name}: {value}\r\n" for name, value in self._fixed_headers.items()]
        connection = (
            ""
            if request.keep_alive and request.version >= (1, 1)
            else ("Connection: keep-alive\r\n" if request.keep_alive else "Connection: close\r\n")
        )
        return "".join((*lines, f"Content-Length: {self._length}\r\n", connection, "\r\n")).encode("latin-1")

    async def _send_bytes(self, data: bytes, flags: int) -> None:
        assert self._socket is not None
        view = memoryview(data)
        while view:
            try:
                view = view[self._socket.send(view, flags) :]
            except BlockingIOError:
                await _writable(self._socket)

    async def _send_pieces(self, fd: int, start: int, stop: int) -> None:
        while start < stop:
            data = await _read(fd, start, min(_PIECE_BYTES, stop - start))
            await self._write(data)
            start += len(data)

    async def _write(self, data: bytes) -> None:
        assert self._request is not None
        writer: Any = self._request.writer
        await writer.write(data)
        await writer.drain()

    def _close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _FileSender:
    """sendfile(2) whenever the socket takes bytes; a task switch only at the end, or for a cold page."""

    def __init__(self, out: socket.socket, fd: int, start: int, stop: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._out = out.fileno()
        self._socket = out
        self._fd = fd
        self._position = start
        self._stop = stop
        self._turn: asyncio.Future[None] | None = None
        self._failure: OSError | None = None

    async def run(self) -> None:
        while True:
            if not is_cached(self._fd, self._position, self._stop):
                await _warm_up(self._fd, self._position, min(self._stop, self._position + _SENDFILE_BYTES))
            if self._step():
                return
            if self._position < self._stop:
                await self._wait()
            if self._failure is not None:
                raise self._failure
            if self._position >= self._stop:
                return

    async def _wait(self) -> None:
        self._turn = self._loop.create_future()
        if self._socket.family != socket.AF_UNIX:  # there another process of ours reads, which has its own bounds
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
        self._loop.add_writer(self._out, self._on_writable)
        try:
            await self._turn
        finally:
            self._loop.remove_writer(self._out)

    def _on_writable(self) -> None:
        assert self._turn is not None
        if self._turn.done():
            return
        try:
            is_over = self._step() or not is_cached(self._fd, self._position, self._stop)
        except OSError as exc:
            self._failure = exc
            is_over = True
        if is_over:
            self._turn.set_result(None)

    def _step(self) -> bool:
        """Send once; return whether all is sent."""
        count = min(self._stop - self._position, _SENDFILE_BYTES)
        try:
            sent = os.sendfile(self._out, self._fd, self._position, count)
        except BlockingIOError:
            return False
        if not sent:
            raise OSError(f"the file ends at {self._position}")
        self._position += sent
        return self._position >= self._stop


_PROBE = [bytearray(1)]


def is_cached(fd: int, start: int, stop: int) -> bool:
    """Are the pages of the next step in memory, as far as its ends tell? A read from disk would stop the loop."""
    try:
        os.preadv(fd, _PROBE, start, os.RWF_NOWAIT)
        os.preadv(fd, _PROBE, min(stop, start + _SENDFILE_BYTES) - 1, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True  # a file system that does not know the flag; the read itself tells of errors
    return True


async def _warm_up(fd: int, start: int, stop: int) -> None:
    """Bring bytes into the page cache, in a thread."""
    await asyncio.get_running_loop().run_in_executor(None, os.pread, fd, stop - start, start)


async def _read(fd: int, start: int, length: int) -> bytes:
    data = bytearray(length)
    try:
        got = os.preadv(fd, [data], start, os.RWF_NOWAIT)
    except OSError:
        got = 0
    if got == length:
        return bytes(data)
    whole = await asyncio.get_running_loop().run_in_executor(None, os.pread, fd, length, start)
    if not whole:
        raise OSError(f"the file ends at {start}")
    return whole


async def _writable(out: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    turn = loop.create_future()
    loop.add_writer(out.fileno(), lambda: None if turn.done() else turn.set_result(None))
    try:
        await turn
    finally:
        loop.remove_writer(out.fileno())
