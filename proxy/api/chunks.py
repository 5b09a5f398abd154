"""``POST /v1/chunks``: the fast path. Many chunk ids in, frames out (``cache/frames.py``).

The query may hold ``chain=sha256:…``, so that evicted chunks can be ingested again, and ``verify=1``: check each
chunk against its id before it is sent. Nodes verify what they get; one that got a damaged chunk asks again with
``verify=1``, the damaged record is dropped and the chunk comes back from its layer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from aiohttp import web

from fastpull.cache.digest import CHUNK_ID_BYTES, ChunkId, Digest
from fastpull.cache.errors import ChunkMissingError
from fastpull.cache.frames import FRAMES_TYPE, MAX_IDS, unpack_ids
from fastpull.proxy import metrics
from fastpull.proxy.api.chunk_blocks import Block, count, gather, measure
from fastpull.proxy.api.messaging import read_body
from fastpull.proxy.api.streams import send, whole_or_cut
from fastpull.proxy.services import SERVICES, Services

ROUTES = web.RouteTableDef()

_RESTORE_SECONDS = 20.0  # below the 30 s after which a node gives the request up


@ROUTES.post("/v1/chunks")
async def post_chunks(request: web.Request) -> web.StreamResponse:
    services = request.app[SERVICES]
    ids = unpack_ids(await read_body(request, MAX_IDS * CHUNK_ID_BYTES))
    chain = str(Digest.parse(request.query["chain"])) if "chain" in request.query else ""
    verify = request.query.get("verify", "0") == "1"
    services.recently_served.add(ids)
    services.store.touch(ids)
    block = gather(services.store, ids, 0, verify=verify, skip_missing=False)
    count(block, 0)
    length = len(block.data) if block.stop == len(ids) else None
    if length is None and not verify:
        rest = measure(services.store, ids, block)
        length = None if rest is None else len(block.data) + rest
    response = web.StreamResponse()
    response.content_type = FRAMES_TYPE
    if length is not None:  # the usual case: nothing is missing. Framing as HTTP chunks would cost one more copy
        response.content_length = length
    async with whole_or_cut(request, response) as writer:
        writer.send_headers()  # else aiohttp copies head and first block into one
        await _stream(services, response, ids, block, chain, verify=verify, may_wait=length is None)
        await response.write_eof()
    return response


async def _stream(
    services: Services,
    response: web.StreamResponse,
    ids: Sequence[ChunkId],
    block: Block,
    chain: str,
    *,
    verify: bool,
    may_wait: bool,
) -> None:
    """Send ``block`` and what follows it. Waits once for missing chunks to come back, then says what is missing.

    Without ``may_wait``, when the length was promised, raise ``ChunkMissingError`` for what was evicted since.
    """
    until = time.monotonic() + _RESTORE_SECONDS
    skip_missing = False
    while True:
        if block.data:
            await send(response, block.data)
        start = block.stop
        if start == len(ids):
            return
        if block.damaged:
            await services.store_writer.run(services.store.drop, block.damaged)
        if not block.data and not skip_missing:  # ids[start] is missing
            if not may_wait:
                raise ChunkMissingError(ids[start])
            rest = ids[start:]
            missing = [chunk for chunk, is_here in zip(rest, services.store.has(rest), strict=True) if not is_here]
            left = until - time.monotonic()
            skip_missing = not chain or left <= 0 or not await services.restore.restore(chain, missing, left)
            metrics.CHUNKS_ABSENT.labels("missing").inc(len(missing))
        block = gather(services.store, ids, start, verify=verify, skip_missing=skip_missing)
        count(block, start)
