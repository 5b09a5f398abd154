"""A follower's answers to ``POST /v1/chunks``: batches of which every chunk is in the store."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from aiohttp import web

from fastpull.cache.digest import CHUNK_ID_BYTES, ChunkId
from fastpull.cache.errors import CacheError, ChunkMissingError, FrameError
from fastpull.cache.frames import FRAMES_TYPE, MAX_IDS, unpack_ids
from fastpull.cache.lmdb_reader import LmdbChunkReader
from fastpull.proxy import metrics
from fastpull.proxy.api.chunk_blocks import Block, count, gather, measure
from fastpull.proxy.api.streams import send, whole_or_cut
from fastpull.proxy.workers.tally import Tally

log = logging.getLogger(__name__)

_MAX_BODY = MAX_IDS * CHUNK_ID_BYTES
_BODY_SECONDS = 60.0  # as the leader has it (``api/messaging.py``)
_TIDY_SECONDS = 60.0


class FollowerChunks:
    """Reads the leader's store. What is missing or damaged, and what is to be verified, is the leader's to answer."""

    def __init__(self, path: Path, tally: Tally) -> None:
        """Raise ``CacheError`` where there is no store."""
        self._reader = LmdbChunkReader.open(path)
        self._tally = tally

    def close(self) -> None:
        self._reader.close()

    async def keep_tidy(self) -> None:
        """For ever: let go of what was evicted and of resident pages."""
        while True:
            await asyncio.sleep(_TIDY_SECONDS)
            try:
                self._reader.tidy()
            except (CacheError, OSError) as exc:
                log.warning("can not tidy up after the chunk store: %s", exc)

    @staticmethod
    def concerns(request: web.Request) -> bool:
        """Is it a batch whose body may be read here?"""
        length = request.content_length
        return (
            request.method == "POST"
            and request.path == "/v1/chunks"
            and "verify" not in request.query
            and "Content-Encoding" not in request.headers
            and length is not None
            and 0 < length <= _MAX_BODY
        )

    async def read(self, request: web.Request) -> bytes:
        """The body. Raise ``TimeoutError`` for one that comes too slowly."""
        async with asyncio.timeout(_BODY_SECONDS):
            return await request.content.readexactly(request.content_length or 0)

    async def answer(self, request: web.Request, body: bytes) -> web.StreamResponse | None:
        """The answer, sent; ``None`` = the leader's turn, nothing was sent."""
        try:
            ids = unpack_ids(body)
            block = gather(self._reader, ids, 0, verify=False, skip_missing=False)
            rest = measure(self._reader, ids, block)
        except (FrameError, CacheError, OSError):
            return None
        if rest is None:
            return None
        self._tally.use_chunks(ids)
        response = web.StreamResponse()
        response.content_type = FRAMES_TYPE
        response.content_length = len(block.data) + rest
        async with whole_or_cut(request, response) as writer:
            writer.send_headers()  # else aiohttp copies head and first block into one
            await self._stream(response, ids, block)
            await response.write_eof()
        metrics.API_REQUESTS.labels("/v1/chunks", "200").inc()
        return response

    async def _stream(self, response: web.StreamResponse, ids: list[ChunkId], block: Block) -> None:
        """Raise ``ChunkMissingError`` for what was evicted since its length was promised."""
        count(block, 0)
        await send(response, block.data)
        while (start := block.stop) < len(ids):
            block = gather(self._reader, ids, start, verify=False, skip_missing=False)
            if not block.data:
                raise ChunkMissingError(ids[start])
            count(block, start)
            await send(response, block.data)
