"""The daemon's own API on ``RUN_DIR/control.sock`` (mode 0600): what ``fastpull-node`` says to it.

    GET  /status?local=1    ``NodeStatus``; local=1 counts what is in the node cache
    POST /mount             ``MountRequest`` → ``MountAnswer``: mount a chain for a user
    POST /release           ``ReleaseRequest``: that user needs it no longer
    POST /stop              ``StopRequest``: end the daemon
    GET  /start?chain=…     ``StartRecord``: the chain's last start, or the one that goes on; container=… names it by
                            a container, or prefix of one; without a query the last start of all
    POST /scrub?rate=…      check all that is kept here: ``ScrubState`` line by line until ``done``; to hang up ends it
    GET  /metrics           Prometheus

Errors are ``ErrorBody`` with a status of 400 and above.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from aiohttp import web

from fastpull.cache.digest import Digest
from fastpull.cache.errors import MalformedDigestError
from fastpull.cache.scrub import ScrubRunningError
from fastpull.cache.wire import ErrorBody
from fastpull.config.errors import ConfigError
from fastpull.config.units import ByteSize
from fastpull.fuse_client.control_messages import (
    SOCKET_NAME,
    MountAnswer,
    MountRequest,
    ReleaseRequest,
    StopRequest,
)
from fastpull.fuse_client.errors import (
    ChainInUseError,
    ChainMountError,
    ChainUnknownError,
    NodeError,
    ProxyError,
    StartUnknownError,
)
from fastpull.fuse_client.metrics import Metrics, NodeCollector
from fastpull.fuse_client.node import Node

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024

T = TypeVar("T", bound=msgspec.Struct)


class Control:
    """Answers ``fastpull-node``. ``unmount_at_end`` says how the daemon was asked to end."""

    def __init__(
        self,
        node: Node,
        stop: Callable[[], None],
        chain_of_container: Callable[[str], Digest | None] = lambda _: None,
    ) -> None:
        self.unmount_at_end = False
        self._node = node
        self._chain_of_container = chain_of_container
        self._stop = stop
        self._metrics = metrics_of(node)

    @contextlib.asynccontextmanager
    async def listen(self, run_dir: Path) -> AsyncIterator[Path]:
        """Serve until the block ends. The caller holds the lock of ``run_dir``."""
        app = web.Application(middlewares=[_answered], client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.get("/status", self._status),
                web.get("/start", self._start),
                web.post("/mount", self._mount),
                web.post("/release", self._release),
                web.post("/stop", self._stopping),
                web.post("/scrub", self._scrub),
                web.get("/metrics", self._metrics_text),
            ]
        )
        path = run_dir / SOCKET_NAME
        path.unlink(missing_ok=True)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
        await runner.setup()
        try:
            await web.UnixSite(runner, str(path)).start()
            path.chmod(0o600)
            yield path
        finally:
            self._node.scrubs.stop()  # else its answer would be waited for
            await runner.cleanup()
            path.unlink(missing_ok=True)

    async def _status(self, request: web.Request) -> web.Response:
        local = await self._node.count_local() if request.query.get("local") == "1" else []
        return _json(self._node.status(local=local))

    async def _start(self, request: web.Request) -> web.Response:
        chain: Digest | None = None
        if name := request.query.get("chain"):
            chain = Digest.parse(name)
        elif name := request.query.get("container"):
            chain = await asyncio.to_thread(self._chain_of_container, name)
            if chain is None:
                raise StartUnknownError(f"no container {name} runs from a chain of this node")
        record = self._node.tracer.last_start(chain)
        if record is None:
            raise StartUnknownError(f"no start of {f'chain {chain}' if chain else 'any image'} is recorded here")
        return _json(record)

    async def _mount(self, request: web.Request) -> web.Response:
        wanted = await _body(request, MountRequest)
        path = await self._node.chains.mount(Digest.parse(wanted.chain_id), wanted.user, follow=wanted.start)
        return _json(MountAnswer(path=str(path)))

    async def _release(self, request: web.Request) -> web.Response:
        released = await _body(request, ReleaseRequest)
        await self._node.chains.unmount(Digest.parse(released.chain_id), released.user)
        return web.Response(status=204)

    async def _stopping(self, request: web.Request) -> web.Response:
        wanted = await _body(request, StopRequest)
        if not wanted.keep_mounts:
            await self._node.unmount_all(force=wanted.force)
            self.unmount_at_end = True
        self._stop()
        return web.Response(status=204)

    async def _scrub(self, request: web.Request) -> web.StreamResponse:
        rate = ByteSize.parse(request.query.get("rate", "0"))
        async with contextlib.aclosing(self._node.scrubs.states(rate)) as states:
            state = await anext(states)
            response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):  # whoever asked has left
                await response.write(msgspec.json.encode(state) + b"\n")
                async for state in states:
                    await response.write(msgspec.json.encode(state) + b"\n")
                await response.write_eof()
        return response

    async def _metrics_text(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})


@contextlib.asynccontextmanager
async def metrics_listener(node: Node, address: str, port: int) -> AsyncIterator[None]:
    """``/metrics`` and ``/healthz`` on TCP, for Prometheus and probes. Nothing there changes anything."""
    metrics = metrics_of(node)

    async def text(_request: web.Request) -> web.Response:
        return web.Response(body=metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    app = web.Application()
    app.add_routes([web.get("/metrics", text), web.get("/healthz", healthz)])
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=2.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, address, port).start()
        yield
    finally:
        await runner.cleanup()


def metrics_of(node: Node) -> Metrics:
    return Metrics(NodeCollector(node.fetcher.counters, node.status))


@web.middleware
async def _answered(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except (ChainUnknownError, StartUnknownError) as exc:
        return _error(404, exc)
    except (ChainInUseError, ChainMountError, ScrubRunningError) as exc:
        return _error(409, exc)
    except ProxyError as exc:
        return _error(502, exc)
    except (msgspec.DecodeError, MalformedDigestError, ConfigError) as exc:
        return _error(400, exc)
    except NodeError as exc:
        return _error(500, exc)


async def _body(request: web.Request, kind: type[T]) -> T:
    return msgspec.json.decode(await request.read(), type=kind)


def _json(message: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(message), content_type="application/json")


def _error(status: int, exc: Exception) -> web.Response:
    log.warning("%s", exc)
    body = ErrorBody(error=str(exc), remedy=getattr(exc, "remedy", ""))
    return web.Response(status=status, body=msgspec.json.encode(body), content_type="application/json")
