"""Answers GETs of complete blobs before aiohttp sees them.

A small range of a blob on disk is two system calls; the way through a web framework costs ten times as much
(measured on one core: 90 us of Python for an empty aiohttp handler, 20 us here, 50 us of kernel for 256 KiB). So a
protocol stands in front of aiohttp's and answers what is simple: one whole GET without a body, of a complete
blob, up to a MiB, from the page cache, over plain TCP, while aiohttp has nothing to do on the connection.
Everything else, and everything in doubt, goes to aiohttp, whose answer is the same but for the time it takes.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastpull.cache.digest import Digest
from fastpull.proxy import metrics
from fastpull.proxy.errors import MirrorError
from fastpull.proxy.mirror.blob_heads import blob_headers
from fastpull.proxy.mirror.sending import is_cached
from fastpull.proxy.mirror.shelf import Shelf, find_blob
from fastpull.proxy.ranges import ByteRange, parse_range

MAX_BODY = 2**20
_MAX_REQUEST = 4096
_MAX_QUEUED = 64 * 1024
_MAX_PATHS = 8192
_AIOHTTP_RESTS_SECONDS = 30.0  # it closes connections on which it saw nothing for 75 s; it sees one in time

_PLAIN = rb"(?:Host|User-Agent|Accept|Accept-Encoding|Accept-Language|Authorization|Traceparent|Tracestate): [ -~]*\r\n"
_REQUEST = re.compile(
    rb"GET (/v2/[!-~]+) HTTP/1\.1\r\n(?:" + _PLAIN + rb")*(?:Range: ([ -~]*)\r\n)?(?:" + _PLAIN + rb")*\r\n",
    re.IGNORECASE,
)


_WHOLE = b"HTTP/1.1 200 OK\r\n"
_PART = b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes %d-%d/%d\r\n"
_SENT = metrics.CLIENT_BYTES.labels("blob")


@dataclass(frozen=True, slots=True)
class SimpleGet:
    """A GET that nothing but its path and its Range matter to."""

    target: bytes
    range: str | None


def parse_simple_get(data: bytes) -> SimpleGet | None:
    """Read exactly one request; ``None`` = it is not that simple, aiohttp is to read it. Pure."""
    if len(data) > _MAX_REQUEST:
        return None
    match = _REQUEST.fullmatch(data)
    if match is None or not data.startswith(b"GET "):
        return None
    wanted = match[2]
    return SimpleGet(match[1], None if wanted is None else wanted.decode("ascii"))


@dataclass(frozen=True, slots=True)
class _Path:
    """What a request target means."""

    digest: Digest
    head: bytes  # header lines of each answer
    answered: Any  # the counter


@dataclass(slots=True)
class _Body:
    """What is still to be sent of an answer."""

    head: bytes
    fd: int
    position: int
    stop: int

    def step(self, out: socket.socket) -> bool:
        """Send what the socket takes; return whether that was all. Raise ``OSError``."""
        try:
            if self.head:
                self.head = self.head[out.send(self.head, socket.MSG_MORE) :]
            while not self.head and self.position < self.stop:
                sent = os.sendfile(out.fileno(), self.fd, self.position, self.stop - self.position)
                if not sent:
                    raise OSError(f"the file ends at {self.position}")
                self.position += sent
        except BlockingIOError:
            return False
        return not self.head and self.position >= self.stop


class FastLane:
    """Makes the protocols of one listener. ``handler_factory`` is aiohttp's (``AppRunner.server``)."""

    def __init__(self, shelf: Shelf, handler_factory: Callable[[], Any]) -> None:
        self._shelf = shelf
        self._handler_factory = handler_factory
        self._paths: dict[bytes, _Path | None] = {}

    def __call__(self) -> asyncio.Protocol:
        return _Connection(self, self._handler_factory())

    def answer(self, get: SimpleGet) -> _Body | None:
        """The answer to a request, the descriptor open; ``None`` = not for us."""
        path = self._path(get.target)
        if path is None or (opened := self._shelf.open(path.digest)) is None:
            return None
        fd, size = opened
        wanted = parse_range(get.range)
        try:
            span = ByteRange(0, size) if wanted is None else wanted.resolve(size)
        except MirrorError:
            span = ByteRange(0, 0)  # 416; aiohttp says it
        if not 0 < span.length <= MAX_BODY or not is_cached(fd, *span):
            os.close(fd)
            return None
        path.answered.inc()
        _SENT.inc(span.length)
        start = _WHOLE if wanted is None else _PART % (span.start, span.stop - 1, size)
        return _Body(b"%b%bContent-Length: %d\r\n\r\n" % (start, path.head, span.length), fd, *span)

    def _path(self, target: bytes) -> _Path | None:
        try:
            return self._paths[target]
        except KeyError:
            if len(self._paths) >= _MAX_PATHS:
                self._paths.clear()
            path = self._paths[target] = self._read_path(target)
            return path

    def _read_path(self, target: bytes) -> _Path | None:
        found = find_blob(self._shelf, target.decode("ascii"))
        if found is None:
            return None
        head = "".join(f"{name}: {value}\r\n" for name, value in blob_headers(found.digest, found.namespace).items())
        return _Path(found.digest, head.encode("latin-1"), metrics.REQUESTS.labels("blobs", "hit", found.label))


class _Connection(asyncio.Protocol):
    """Stands between a transport and aiohttp's handler, which it is transparent for."""

    def __init__(self, lane: FastLane, handler: Any) -> None:
        self._lane = lane
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._socket: socket.socket | None = None
        self._handed_over_at = 0.0
        self._sending: tuple[_Body, socket.socket] | None = None
        self._queued = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        plain = transport.get_extra_info("socket")
        if plain is not None and transport.get_extra_info("ssl_object") is None:
            # The transport's own descriptor: never closed here, and used only while the transport is open.
            self._socket = socket.socket(plain.family, plain.type, plain.proto, plain.fileno())
        self._handler.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_sending()
        if self._socket is not None:
            self._socket.detach()
            self._socket = None
        self._handler.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._sending is not None:
            self._queued += data
            if len(self._queued) > _MAX_QUEUED:
                self._transport.pause_reading()
            return
        if self._is_free() and (get := parse_simple_get(data)) is not None and self._answer(get):
            return
        self._handed_over_at = self._loop.time()
        self._handler.data_received(data)

    def eof_received(self) -> bool | None:
        answer: bool | None = self._handler.eof_received()
        return answer

    def pause_writing(self) -> None:
        self._handler.pause_writing()

    def resume_writing(self) -> None:
        self._handler.resume_writing()

    def _is_free(self) -> bool:
        """aiohttp waits for a request, and nothing of an earlier answer is left to send.

        ``_waiter`` and ``_messages`` are aiohttp's own; should they vanish, everything goes the long way.
        """
        waiter = getattr(self._handler, "_waiter", None)
        return (
            self._socket is not None
            and waiter is not None
            and not waiter.done()
            and not getattr(self._handler, "_messages", True)
            and not self._transport.is_closing()
            and not self._transport.get_write_buffer_size()
            and (not self._handed_over_at or self._loop.time() - self._handed_over_at < _AIOHTTP_RESTS_SECONDS)
        )

    def _answer(self, get: SimpleGet) -> bool:
        body = self._lane.answer(get)
        if body is None:
            return False
        assert self._socket is not None
        try:
            is_sent = body.step(self._socket)
        except OSError:
            os.close(body.fd)
            self._transport.abort()
            return True
        if is_sent:
            os.close(body.fd)
        else:
            self._wait(body)
        return True

    def _wait(self, body: _Body) -> None:
        """Go on when the socket takes more. Meanwhile further requests are kept unread."""
        assert self._socket is not None
        # A duplicate, because a loop refuses to watch a descriptor that a transport owns.
        out = self._socket.dup()
        self._sending = (body, out)
        self._loop.add_writer(out.fileno(), self._go_on)

    def _go_on(self) -> None:
        assert self._sending is not None
        body, out = self._sending
        try:
            if not body.step(out):
                return
        except OSError:
            self._transport.abort()
            self._stop_sending()
            return
        self._stop_sending()
        queued, self._queued = self._queued, b""
        if len(queued) > _MAX_QUEUED:
            self._transport.resume_reading()
        if queued:
            self.data_received(queued)

    def _stop_sending(self) -> None:
        if self._sending is not None:
            body, out = self._sending
            self._sending = None
            self._loop.remove_writer(out.fileno())
            out.close()
            os.close(body.fd)
