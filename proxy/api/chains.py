"""``/v1/chains/{chainID}``: how far a chain is, and what a node mounts."""

from __future__ import annotations

import asyncio

from aiohttp import web

from fastpull.cache.wire import ChainLayers
from fastpull.proxy.api.messaging import chain_of, reply, seconds_of
from fastpull.proxy.ingest.chains import plain
from fastpull.proxy.ingest.state import ArtifactKind
from fastpull.proxy.services import SERVICES

ROUTES = web.RouteTableDef()

_MOST_WAIT_SECONDS = 120.0
_IMMUTABLE = "public, max-age=31536000, immutable"


@ROUTES.get("/v1/chains/{chain}")
async def get_chain(request: web.Request) -> web.StreamResponse:
    """``ChainState``. ``wait=s`` waits for the end of what runs; ``build=0`` is content with indexed layers.

    Always 200: that a chain is unknown or has failed is an answer, not an error.
    """
    services = request.app[SERVICES]
    wait = seconds_of(request, "wait", _MOST_WAIT_SECONDS)
    build = request.query.get("build", "1") != "0"
    return reply(await services.ingest.state(chain_of(request), wait, build=build))


@ROUTES.get("/v1/chains/{chain}/bootstrap")
async def get_bootstrap(request: web.Request) -> web.StreamResponse:
    return await _artifact(request, "bootstrap")


@ROUTES.get("/v1/chains/{chain}/chunkmap")
async def get_chunk_map(request: web.Request) -> web.StreamResponse:
    return await _artifact(request, "chunkmap")


@ROUTES.get("/v1/chains/{chain}/layers")
async def get_layers(request: web.Request) -> web.StreamResponse:
    """``ChainLayers``: which layer brought what stands on the device."""
    chain = chain_of(request)
    diff_ids, of_places = await request.app[SERVICES].ingest.chains.layers_of_places(chain)
    return reply(ChainLayers(chain_id=chain, diff_ids=diff_ids, of_places=of_places))


async def _artifact(request: web.Request, kind: ArtifactKind) -> web.StreamResponse:
    """The bytes, zstd-compressed if the client says it understands that; built first where need be.

    ``X-Content-Digest`` is the sha256 of the uncompressed bytes and never changes for a chain.
    """
    record = await request.app[SERVICES].ingest.chains.artifact(chain_of(request), kind)
    headers = {
        "ETag": f'"{record.digest}"',
        "X-Content-Digest": record.digest,
        "Cache-Control": _IMMUTABLE,
        "Vary": "Accept-Encoding",
    }
    if f'"{record.digest}"' in request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers=headers)
    if accepts_zstd(request.headers.get("Accept-Encoding", "")):
        headers["Content-Encoding"] = "zstd"
        body = record.data
    else:
        body = await asyncio.to_thread(plain, record)
    return web.Response(body=body, headers=headers, content_type="application/octet-stream")


def accepts_zstd(header: str) -> bool:
    """Does ``Accept-Encoding`` name zstd with a weight above zero (RFC 9110, 12.5.3)? Pure."""
    for item in header.split(","):
        coding, _, parameter = item.partition(";")
        if coding.strip().lower() == "zstd":
            weight = parameter.replace(" ", "").lower().removeprefix("q=")
            return weight.strip("0.") != "" if parameter.strip() else True
    return False
