"""The proxy's ``/v1`` as a node sees it. Messages: ``cache/wire.py``; chunk frames: ``cache/frames.py``."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Literal, Self, TypeVar

import msgspec

from fastpull.cache.digest import ChunkId, Digest
from fastpull.cache.errors import FrameError
from fastpull.cache.frames import FRAMES_TYPE, IDS_TYPE, FrameReader, pack_ids
from fastpull.cache.store import StoredChunk
from fastpull.cache.wire import ChainLayers, ChainState, ImageInfo, Plan, Trace, WarmRequest, WarmState
from fastpull.config.node import NodeSettings
from fastpull.fuse_client.errors import ProxyAnswerError, ProxyError, ProxyProtocolError
from fastpull.fuse_client.fetch.endpoints import Endpoints
from fastpull.fuse_client.fetch.transport import Transport, read_bounded

T = TypeVar("T")

MESSAGE_BYTES = 8 << 20
PLAN_BYTES = 64 << 20  # a million chunk ids in hex
WAIT_MARGIN_SECONDS = 5.0

Artifact = Literal["bootstrap", "chunkmap"]
Received = list[tuple[ChunkId, StoredChunk | None]]


class ProxyClient:
    """Asks the proxies. Every method raises ``ProxyError`` and nothing else.

    The small requests try each proxy that is up once. ``chunks`` tries one: its caller holds the
    scheduler that decides what to ask for next.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport = transport

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, settings: NodeSettings) -> AsyncIterator[Self]:
        """Raise ``ConfigError`` for addresses or TLS files that can not be used."""
        async with Transport.open(
            settings.proxies, tls=settings.tls, read_seconds=settings.fetch.request_timeout_seconds
        ) as transport:
            yield cls(transport)

    @property
    def endpoints(self) -> Endpoints:
        return self.transport.endpoints

    async def chain_state(self, chain: Digest, wait_seconds: float = 0.0, *, build: bool = True) -> ChainState:
        """What the proxy knows; it may wait so long for a chain that it is indexing.

        Without ``build`` a chain is ready when its layers are indexed, and nothing is built for the question.
        """
        return await self._ask(
            "GET",
            f"/v1/chains/{chain}",
            ChainState,
            params={"wait": f"{wait_seconds:g}", "build": str(int(build))},
            read_seconds=wait_seconds + WAIT_MARGIN_SECONDS,
        )

    async def artifact(self, chain: Digest, which: Artifact, max_bytes: int) -> tuple[str, bytes]:
        """The bytes of a bootstrap or chunk map as sent, and their content encoding (``zstd`` or ``identity``)."""
        last: ProxyError | None = None
        for attempt in range(len(self.endpoints.all)):
            try:
                async with self.transport.request(
                    "GET", f"/v1/chains/{chain}/{which}", headers={"Accept-Encoding": "zstd"}, attempt=attempt
                ) as response:
                    encoding = response.headers.get("Content-Encoding", "identity")
                    return encoding, await read_bounded(response, max_bytes)
            except ProxyError as exc:
                last = exc
        assert last is not None
        raise last

    async def chunks(self, chain: Digest, wanted: Sequence[ChunkId], attempt: int = 0) -> AsyncGenerator[Received]:
        """Stream chunks as they come, in the order of ``wanted``; None stands for one that the proxy lacks.

        Later attempts have the proxy check each chunk: what is damaged there, or on a disk that fails, is replaced.
        Nothing is verified here. Raise ``ProxyProtocolError`` when the answer ends before the last chunk;
        what was yielded until then is good.
        """
        reader = FrameReader()
        taken = 0
        async with self.transport.request(
            "POST",
            "/v1/chunks",
            params={"chain": str(chain), "verify": "1"} if attempt else {"chain": str(chain)},
            body=pack_ids(wanted),
            headers={"Content-Type": IDS_TYPE, "Accept-Encoding": "identity"},
            attempt=attempt,
        ) as response:
            url = str(response.url)
            if response.content_type != FRAMES_TYPE:
                raise ProxyProtocolError(url, f"it sends {response.content_type}, not {FRAMES_TYPE}")
            async for data in response.content.iter_any():
                try:
                    frames = list(reader.feed(data))
                except FrameError as exc:
                    raise ProxyProtocolError(url, str(exc)) from exc
                if len(frames) > len(wanted) - taken:
                    raise ProxyProtocolError(url, f"more frames than the {len(wanted)} asked for")
                if frames:
                    yield list(zip(wanted[taken:], frames, strict=False))
                    taken += len(frames)
            if taken < len(wanted) or reader.pending:
                raise ProxyProtocolError(url, f"cut after {taken} of {len(wanted)} chunks")

    async def plan(self, chain: Digest) -> Plan | None:
        """The chain's plan; None = there is none (yet)."""
        try:
            return await self._ask("GET", f"/v1/chains/{chain}/plan", Plan, limit=PLAN_BYTES)
        except ProxyAnswerError as exc:
            if exc.status == 404:
                return None
            raise

    async def layers(self, chain: Digest) -> ChainLayers:
        """Which layer brought what stands on the chain's device."""
        return await self._ask("GET", f"/v1/chains/{chain}/layers", ChainLayers, limit=PLAN_BYTES, read_seconds=60.0)

    async def send_trace(self, trace: Trace) -> None:
        await self._ask("POST", "/v1/traces", None, body=trace)

    async def image(self, ref: str, platform: str = "") -> ImageInfo:
        return await self._ask(
            "GET", "/v1/images", ImageInfo, params={"ref": ref, "platform": platform}, read_seconds=60.0
        )

    async def warm(self, ref: str, platform: str = "") -> WarmState:
        return await self._ask("POST", "/v1/warm", WarmState, body=WarmRequest(image=ref, platform=platform))

    async def warm_state(self, warm_id: str) -> WarmState:
        return await self._ask("GET", f"/v1/warm/{warm_id}", WarmState)

    async def _ask(
        self,
        method: str,
        path: str,
        kind: type[T] | None,
        *,
        params: dict[str, str] | None = None,
        body: msgspec.Struct | None = None,
        limit: int = MESSAGE_BYTES,
        read_seconds: float | None = None,
    ) -> T:
        last: ProxyError | None = None
        for attempt in range(len(self.endpoints.all)):
            try:
                async with self.transport.request(
                    method,
                    path,
                    params=params,
                    body=None if body is None else msgspec.json.encode(body),
                    headers={"Accept-Encoding": "identity", "Content-Type": "application/json"},
                    attempt=attempt,
                    read_seconds=read_seconds,
                ) as response:
                    raw = await read_bounded(response, limit)
                    try:
                        return msgspec.json.decode(raw, type=kind) if kind is not None else None  # type: ignore[return-value]  # None asks for no answer
                    except msgspec.DecodeError as exc:
                        raise ProxyProtocolError(str(response.url), str(exc)) from exc
            except ProxyAnswerError as exc:
                if exc.status < 500:
                    raise
                last = exc
            except ProxyError as exc:
                last = exc
        assert last is not None
        raise last
