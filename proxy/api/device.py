"""``GET /v1/chains/{chainID}/device``: the bytes behind a bootstrap, for any HTTP client, with Range (RFC 9110, 14)."""

from __future__ import annotations

import asyncio
import time

from aiohttp import web

from fastpull.cache.codec import decode
from fastpull.cache.digest import ChunkId
from fastpull.cache.errors import ChunkCorruptError, ChunkMissingError
from fastpull.cache.store import ChunkStore
from fastpull.image.chunk_map import ChunkMap
from fastpull.proxy.api.messaging import chain_of
from fastpull.proxy.api.streams import send, whole_or_cut
from fastpull.proxy.ranges import ByteRange, parse_range
from fastpull.proxy.services import SERVICES, Services

ROUTES = web.RouteTableDef()

_WINDOW_BYTES = 1 << 20
_RESTORE_SECONDS = 60.0


class _LostChunksError(Exception):
    """Chunks that are missing or were found damaged."""

    def __init__(self, missing: list[ChunkId], damaged: list[ChunkId]) -> None:
        super().__init__(f"{len(missing)} chunks are missing, {len(damaged)} damaged")
        self.missing = missing
        self.damaged = damaged


@ROUTES.get("/v1/chains/{chain}/device")
async def get_device(request: web.Request) -> web.StreamResponse:
    """Every chunk is verified on its way; evicted ones are ingested again first."""
    services = request.app[SERVICES]
    chain = chain_of(request)
    built = await services.ingest.chains.ensure(chain)
    chunk_map = await services.ingest.chains.chunk_map(chain)
    size = chunk_map.device_bytes
    asked = parse_range(request.headers.get("Range"))
    span = asked.resolve(size) if asked is not None else ByteRange(0, size)
    response = web.StreamResponse(status=206 if asked is not None else 200)
    response.content_type = "application/octet-stream"
    response.content_length = span.length
    response.headers["Accept-Ranges"] = "bytes"
    response.headers["ETag"] = f'"{built.chunk_map_digest}"'
    if asked is not None:
        response.headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
    async with whole_or_cut(request, response):
        if request.method != "HEAD":
            for start in range(span.start, span.stop, _WINDOW_BYTES):
                await send(
                    response, await _read(services, chain, chunk_map, start, min(start + _WINDOW_BYTES, span.stop))
                )
        await response.write_eof()
    return response


async def _read(services: Services, chain: str, chunk_map: ChunkMap, start: int, stop: int) -> bytes:
    """Bytes ``start`` to ``stop``. Raise ``ChunkMissingError`` for what can not be had again."""
    until = time.monotonic() + _RESTORE_SECONDS
    while True:
        try:
            return await asyncio.to_thread(read_window, services.store, chunk_map, start, stop)
        except _LostChunksError as exc:
            if exc.damaged:
                await services.store_writer.run(services.store.drop, exc.damaged)
            lost = [*exc.missing, *exc.damaged]
            left = until - time.monotonic()
            if left <= 0 or not await services.restore.restore(chain, lost, left):
                raise ChunkMissingError(lost[0]) from exc


def read_window(store: ChunkStore, chunk_map: ChunkMap, start: int, stop: int) -> bytes:
    """Bytes ``start`` to ``stop`` of the device, zeros where no chunk stands. Raise ``_LostChunksError``."""
    window = bytearray(stop - start)
    missing: list[ChunkId] = []
    damaged: list[ChunkId] = []
    with store.view() as view:
        for piece in chunk_map.pieces(start, stop - start):
            try:
                stored = view.get(piece.chunk_id)
                if stored is None:
                    missing.append(piece.chunk_id)
                    continue
                content = decode(stored, piece.chunk_id)
            except ChunkCorruptError:
                damaged.append(piece.chunk_id)
                continue
            first = max(start, piece.device_offset)
            last = min(stop, piece.device_offset + len(content))
            if first < last:
                window[first - start : last - start] = content[first - piece.device_offset : last - piece.device_offset]
    if missing or damaged:
        raise _LostChunksError(missing, damaged)
    return bytes(window)
