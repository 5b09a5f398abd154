"""A further serving process: ``python -m fastpull.proxy.workers.follower``, started by the leader only.

It shares the leader's port, answers by itself what needs no state (complete blobs, batches of chunks that are in the
store, ``/healthz``) and passes everything else on. It writes nothing and holds no credentials.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, closing, suppress
from pathlib import Path
from typing import Any

import msgspec
import uvloop
from aiohttp import web

from fastpull.cache.errors import CacheError
from fastpull.cache.tasks import Tasks
from fastpull.config.proxy import ListenSettings
from fastpull.proxy.access_log import JsonAccessLogger
from fastpull.proxy.listening import (
    KEEPALIVE_SECONDS,
    MAX_HEADER_BYTES,
    SHUTDOWN_SECONDS,
    ListenError,
    listen,
    tls_context,
)
from fastpull.proxy.mirror.fast_lane import FastLane
from fastpull.proxy.workers import door, lifeline
from fastpull.proxy.workers.blobs import FollowerBlobs
from fastpull.proxy.workers.chunks import FollowerChunks
from fastpull.proxy.workers.forwarding import Leader
from fastpull.proxy.workers.messages import LENGTH, Setup, frame
from fastpull.proxy.workers.shelf import LearnedShelf
from fastpull.proxy.workers.tally import Tally

log = logging.getLogger(__name__)

_REPORT_SECONDS = 1.0
_MAX_SETUP_BYTES = 2**20
_MAX_DESCRIPTORS = 2**20


class FollowerRunner(web.AppRunner):
    """aiohttp's runner with the fast lane in front, as ``MirrorRunner``, over a follower's shelf."""

    def __init__(self, app: web.Application, shelf: LearnedShelf, *, access_log: Any, **kwargs: Any) -> None:
        super().__init__(app, access_log=access_log, **kwargs)
        self._shelf = shelf
        self._logs_access = access_log is not None

    @property
    def server(self) -> Any:
        server = super().server
        return server if server is None or self._logs_access else FastLane(self._shelf, server)


def build_follower(
    blobs: FollowerBlobs, chunks: FollowerChunks, leader: Leader, tell: Callable[[], Awaitable[None]]
) -> web.Application:
    """Every path and method goes through one handler, which decides who answers."""

    async def answer(request: web.Request) -> web.StreamResponse:
        if request.method in ("GET", "HEAD") and request.path == "/healthz":
            return web.Response(text="ok\n")
        if (blob := blobs.find(request)) is not None:
            if (response := await blobs.answer(request, blob)) is not None:
                return response
            return await leader.forward(request, heard=lambda status, headers: blobs.learn(blob, status, headers))
        if chunks.concerns(request):
            try:
                body = await chunks.read(request)
            except TimeoutError:
                return web.Response(status=408)
            return await chunks.answer(request, body) or await leader.forward(request, body=body)
        if request.path == "/metrics":
            await tell()
        return await leader.forward(request)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    return app


class Reporter:
    """Sends the tally to the leader, every second and whenever ``tell`` is called."""

    def __init__(self, tally: Tally, output: asyncio.StreamWriter) -> None:
        self._tally = tally
        self._output = output
        self._turn = asyncio.Lock()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            await self.tell()

    async def tell(self) -> None:
        async with self._turn:
            self._output.write(frame(self._tally.take()))
            await self._output.drain()


async def serve(setup: Setup, output: int) -> int:
    """Serve until the leader stops or is gone; return the exit code. Raise ``ListenError`` or ``CacheError``."""
    stop = asyncio.Event()
    lifeline.watch(0, stop.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = _listen_settings(setup)
    tls = tls_context(settings)
    async with AsyncExitStack() as stack:
        tasks = Tasks()
        stack.push_async_callback(tasks.aclose)
        tally = Tally(setup.number)
        reporter = Reporter(tally, await _writer(output))
        shelf = LearnedShelf(setup.blobs, setup.default_upstream, setup.upstreams, tally)
        chunks = stack.enter_context(closing(FollowerChunks(Path(setup.chunks), tally)))
        socket = stack.enter_context(door.short_path(Path(setup.leader)))
        leader = await stack.enter_async_context(Leader(socket, stop.set))
        runner = FollowerRunner(
            build_follower(FollowerBlobs(shelf), chunks, leader, reporter.tell),
            shelf,
            access_log=logging.getLogger("aiohttp.access") if setup.access_log else None,
            access_log_class=JsonAccessLogger,
            handle_signals=False,
            shutdown_timeout=SHUTDOWN_SECONDS,
            keepalive_timeout=KEEPALIVE_SECONDS,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            auto_decompress=False,  # bodies are passed on as they came
            handler_cancellation=True,  # who leaves while the leader is asked leaves there, too
        )
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        await listen(runner, settings, tls, is_shared=True)
        await reporter.tell()
        _ = tasks.spawn(reporter.run(), name="reports")
        _ = tasks.spawn(chunks.keep_tidy(), name="tidying")
        await stop.wait()
        await runner.cleanup()
        with suppress(ConnectionError, TimeoutError):  # of the pipe, when the leader is gone
            async with asyncio.timeout(1.0):
                await reporter.tell()
    return 0


async def _writer(descriptor: int) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.streams.FlowControlMixin(loop=loop), os.fdopen(descriptor, "wb")
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)


def _listen_settings(setup: Setup) -> ListenSettings:
    def path(text: str | None) -> Path | None:
        return None if text is None else Path(text)

    return ListenSettings(
        address=setup.address,
        port=setup.port,
        tls_certificate=path(setup.tls_certificate),
        tls_key=path(setup.tls_key),
        tls_client_ca=path(setup.tls_client_ca),
    )


def _read_setup(descriptor: int) -> Setup | None:
    """``None`` = the leader was gone before it could say anything."""
    with os.fdopen(os.dup(descriptor), "rb", buffering=0) as stream:
        head = _read_exactly(stream.read, LENGTH.size)
        (length,) = LENGTH.unpack(head) if len(head) == LENGTH.size else (0,)
        if not 0 < length <= _MAX_SETUP_BYTES:
            return None
        return msgspec.msgpack.decode(_read_exactly(stream.read, length), type=Setup)


def _read_exactly(read: Callable[[int], bytes], size: int) -> bytes:
    """Not a byte more: the rest of the stream is the lifeline's. Less at its end."""
    data = b""
    while len(data) < size and (more := read(size - len(data))):
        data += more
    return data


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the leader's to handle
    os.closerange(3, _MAX_DESCRIPTORS)  # LMDB leaves one of the leader's open over exec, and that may write
    output = os.dup(1)
    os.dup2(2, 1)  # whatever some library prints must not end up among the reports
    setup = _read_setup(0)
    if setup is None:
        return 1
    logging.basicConfig(
        level=setup.log_level,
        stream=sys.stderr,
        format=f"%(asctime)s %(levelname)s worker {setup.number} %(name)s: %(message)s",
    )
    logging.getLogger("aiohttp.access").setLevel("INFO")
    try:
        return uvloop.run(serve(setup, output))
    except (ListenError, CacheError, OSError) as exc:
        log.error("can not serve: %s", exc)  # noqa: TRY400 - the leader starts another one
        return 1


if __name__ == "__main__":
    sys.exit(main())
