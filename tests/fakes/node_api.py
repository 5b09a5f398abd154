"""A proxy's ``/v1`` in memory: chains built from entries, and faults on demand."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

import msgspec
import zstandard
from aiohttp import web

from fastpull.cache.codec import encode
from fastpull.cache.digest import ChunkId, Digest, chain_ids
from fastpull.cache.frames import FRAMES_TYPE, MISSING_FRAME, header, unpack_ids
from fastpull.cache.store import StoredChunk
from fastpull.cache.wire import ChainState, ErrorBody, ImageInfo, LayerProgress, Plan, Trace, WarmRequest, WarmState
from fastpull.image.chain import BuiltChain, build_chain
from fastpull.image.layer_index import LayerIndex

Fault = Callable[["FakeProxy", web.Request, list[ChunkId]], Awaitable[web.StreamResponse | None]]
"""Answers a request for chunks in place of the proxy, or returns None to let it answer."""


@dataclass
class FakeProxy:
    """``async with proxy.serving()`` on the loop of the test, or ``with proxy.in_thread()``.

    ``faults`` are used up in order, one for each request for chunks. ``asked`` counts how often each chunk
    was asked for.
    """

    chunks: dict[ChunkId, StoredChunk] = field(default_factory=dict)
    chains: dict[str, tuple[ChainState, BuiltChain]] = field(default_factory=dict)
    images: dict[str, ImageInfo] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    traces: list[Trace] = field(default_factory=list)
    faults: deque[Fault] = field(default_factory=deque)
    asked: Counter[ChunkId] = field(default_factory=Counter)
    requests: list[list[ChunkId]] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    warming: dict[str, int] = field(default_factory=dict)  # image → polls until it is ready
    wrong_artifacts: int = 0  # so many bootstraps and chunk maps are sent damaged
    bytes_per_second: float = 0.0
    budget: float = math.inf  # so many chunks are sent; the next waits until it is raised
    sent: int = 0
    url: str = ""
    port: int = 0

    def add_chunks(self, contents: dict[ChunkId, bytes]) -> None:
        self.chunks.update({chunk: encode(data) for chunk, data in contents.items()})

    def add_image(
        self, ref: str, layers: Sequence[LayerIndex], contents: dict[ChunkId, bytes], *, warm_polls: int = 0
    ) -> Digest:
        """Know an image; after ``warm_polls`` looks at a warm, if not 0."""
        built = build_chain(layers)
        chain = chain_ids([Digest.parse(layer.diff_id) for layer in layers])[-1]
        progress = tuple(
            LayerProgress(digest=layer.diff_id, diff_id=layer.diff_id, stage="ready", blob_bytes=100)
            for layer in layers
        )
        state = ChainState(
            chain_id=str(chain),
            state="ready",
            layers=progress,
            bootstrap_digest=str(Digest.of(built.bootstrap)),
            bootstrap_bytes=len(built.bootstrap),
            chunk_map_digest=str(Digest.of(built.chunk_map)),
            chunk_map_bytes=len(built.chunk_map),
            device_bytes=built.device_bytes,
            content_bytes=built.content_bytes,
            chunks=built.chunks,
        )
        self.chains[str(chain)] = state, built
        diff_ids = tuple(layer.diff_id for layer in layers)
        self.images[ref] = ImageInfo(
            image=ref,
            manifest_digest=f"sha256:{hashlib.sha256(ref.encode()).hexdigest()}",
            chain_id=str(chain),
            platform="linux/amd64",
            diff_ids=diff_ids,
            layer_digests=diff_ids,
        )
        self.add_chunks(contents)
        if warm_polls:
            self.warming[ref] = warm_polls
        return chain

    # -- serving -------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[FakeProxy]:
        app = web.Application(client_max_size=1 << 20)
        app.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/v1/images", self._image),
                web.post("/v1/warm", self._warm),
                web.get("/v1/warm/{id}", self._warm_state),
                web.get("/v1/chains/{chain}", self._state),
                web.get("/v1/chains/{chain}/plan", self._plan),
                web.get("/v1/chains/{chain}/{which}", self._artifact),
                web.post("/v1/chunks", self._chunks),
                web.post("/v1/traces", self._trace),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True)  # the same port again after a restart
        await site.start()
        self.port = runner.addresses[0][1]
        self.url = f"http://127.0.0.1:{self.port}"
        try:
            yield self
        finally:
            await runner.cleanup()

    @contextlib.contextmanager
    def in_thread(self) -> Iterator[FakeProxy]:
        """Serve from a thread, for programs that a test waits for."""
        started = threading.Event()
        stop: list[Callable[[], None]] = []

        async def run() -> None:
            loop = asyncio.get_running_loop()
            stopping = asyncio.Event()
            stop.append(lambda: loop.call_soon_threadsafe(stopping.set))
            async with self.serving():
                started.set()
                await stopping.wait()

        thread = threading.Thread(target=asyncio.run, args=(run(),))
        thread.start()
        assert started.wait(60)
        try:
            yield self
        finally:
            stop[0]()
            thread.join()

    # -- answers -------------------------------------------------------------------------------------

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _image(self, request: web.Request) -> web.Response:
        info = self.images.get(request.query["ref"])
        if info is None:
            return _error(404, f"{request.query['ref']}: no such image", "check its name")
        return _json(info)

    async def _warm(self, request: web.Request) -> web.Response:
        wanted = msgspec.json.decode(await request.read(), type=WarmRequest)
        return _json(WarmState(id=wanted.image.replace("/", "|"), image=wanted.image, stage="working"))

    async def _warm_state(self, request: web.Request) -> web.Response:
        image = request.match_info["id"].replace("|", "/")
        self.warming[image] = left = self.warming.get(image, 0) - 1
        if left <= 0:
            self.warming.pop(image)
        layers = self.chains[self.images[image].chain_id][0].layers
        return _json(
            WarmState(id=image, image=image, stage="working" if left > 0 else "done", layers=layers if left < 2 else ())
        )

    async def _state(self, request: web.Request) -> web.Response:
        self.calls["state"] += 1
        chain = request.match_info["chain"]
        if chain not in self.chains:
            return _json(ChainState(chain_id=chain, state="unknown"))
        if any(self.images[image].chain_id == chain for image in self.warming):
            return _json(ChainState(chain_id=chain, state="indexing"))
        return _json(self.chains[chain][0])

    async def _artifact(self, request: web.Request) -> web.Response:
        which = request.match_info["which"]
        self.calls[which] += 1
        _, built = self.chains[request.match_info["chain"]]
        data = {"bootstrap": built.bootstrap, "chunkmap": built.chunk_map}[which]
        if self.wrong_artifacts:
            self.wrong_artifacts -= 1
            data = bytes(len(data))
        return web.Response(body=zstandard.compress(data), headers={"Content-Encoding": "zstd"})

    async def _plan(self, request: web.Request) -> web.Response:
        self.calls["plan"] += 1
        chain = request.match_info["chain"]
        return _json(self.plans.get(chain, Plan(chain_id=chain)))

    async def _trace(self, request: web.Request) -> web.Response:
        self.traces.append(msgspec.json.decode(await request.read(), type=Trace))
        return _json(Plan(chain_id=self.traces[-1].chain_id))

    async def _chunks(self, request: web.Request) -> web.StreamResponse:
        wanted = unpack_ids(await request.read())
        self.requests.append(wanted)
        self.asked.update(wanted)
        if self.faults and (answer := await self.faults.popleft()(self, request, wanted)) is not None:
            return answer
        response = await begin(request)
        for chunk in wanted:
            while self.sent >= self.budget:
                await asyncio.sleep(0.005)
            self.sent += 1
            frame = self.frame(chunk)
            if self.bytes_per_second:
                await asyncio.sleep(len(frame) / self.bytes_per_second)
            await response.write(frame)
        await response.write_eof()
        return response

    def frame(self, chunk: ChunkId) -> bytes:
        stored = self.chunks.get(chunk)
        return MISSING_FRAME if stored is None else header(stored) + bytes(stored.data)


async def begin(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": FRAMES_TYPE})
    await response.prepare(request)
    return response


def _json(message: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(message), content_type="application/json")


def _error(status: int, error: str, remedy: str = "") -> web.Response:
    body = msgspec.json.encode(ErrorBody(error=error, remedy=remedy))
    return web.Response(status=status, body=body, content_type="application/json")


# -- faults --------------------------------------------------------------------------------------------


def status(code: int) -> Fault:
    async def answer(_proxy: FakeProxy, _request: web.Request, _wanted: list[ChunkId]) -> web.StreamResponse:
        return _error(code, "planned failure")

    return answer


def cut_after(frames: int, extra_bytes: int = 0) -> Fault:
    """So many frames and bytes of the next, then the connection is gone."""

    async def answer(proxy: FakeProxy, request: web.Request, wanted: list[ChunkId]) -> web.StreamResponse:
        response = await begin(request)
        body = b"".join(proxy.frame(chunk) for chunk in wanted[: frames + 1])
        upto = sum(len(proxy.frame(chunk)) for chunk in wanted[:frames]) + extra_bytes
        await response.write(body[:upto])
        assert request.transport is not None
        await asyncio.sleep(0)
        request.transport.close()
        return response

    return answer


def ends_early(frames: int) -> Fault:
    """A complete answer with too few frames."""

    async def answer(proxy: FakeProxy, request: web.Request, wanted: list[ChunkId]) -> web.StreamResponse:
        response = await begin(request)
        await response.write(b"".join(proxy.frame(chunk) for chunk in wanted[:frames]))
        await response.write_eof()
        return response

    return answer


def sends(change: Callable[[list[bytes]], list[bytes]]) -> Fault:
    """The frames after ``change``."""

    async def answer(proxy: FakeProxy, request: web.Request, wanted: list[ChunkId]) -> web.StreamResponse:
        response = await begin(request)
        await response.write(b"".join(change([proxy.frame(chunk) for chunk in wanted])))
        await response.write_eof()
        return response

    return answer


def stalls() -> Fault:
    """Headers, and then nothing until the client leaves."""

    async def answer(_proxy: FakeProxy, request: web.Request, _wanted: list[ChunkId]) -> web.StreamResponse:
        response = await begin(request)
        await response.write(b"")
        await asyncio.sleep(3600)
        return response

    return answer


def held(gate: asyncio.Event) -> Fault:
    """As always, once the gate opens."""

    async def answer(_proxy: FakeProxy, _request: web.Request, _wanted: list[ChunkId]) -> None:
        await gate.wait()

    return answer
