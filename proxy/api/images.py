"""``/v1/images`` and ``/v1/tags``: names of images, resolved, listed, forgotten."""

from __future__ import annotations

import asyncio

import msgspec
from aiohttp import web

from fastpull.cache.wire import ImageInfo
from fastpull.proxy.api.messages import ImageList, ImageSummary
from fastpull.proxy.api.messaging import platform_of, reply, required
from fastpull.proxy.ingest.chains import Chains
from fastpull.proxy.ingest.layers import Layers
from fastpull.proxy.ingest.state import ImageRecord
from fastpull.proxy.services import SERVICES, Services

ROUTES = web.RouteTableDef()

_RESOLVE_SECONDS = 50.0  # below the 60 s that a node waits


@ROUTES.get("/v1/images")
async def get_images(request: web.Request) -> web.StreamResponse:
    """With ``ref=…[&platform=…]``: ``ImageInfo``, resolved through the mirror. Without: ``ImageList``."""
    services = request.app[SERVICES]
    if "ref" not in request.query:
        return reply(ImageList(images=tuple(await asyncio.to_thread(_summaries, services))))
    platform = platform_of(request.query.get("platform", ""))
    async with asyncio.timeout(_RESOLVE_SECONDS):
        record = await services.ingest.images.resolve(required(request, "ref"), platform)
    return reply(
        ImageInfo(
            image=record.names[0],
            manifest_digest=record.manifest_digest,
            chain_id=record.chain_id,
            platform=record.platform,
            diff_ids=record.diff_ids,
            layer_digests=record.layer_digests,
            config=msgspec.Raw(record.config),
        )
    )


@ROUTES.delete("/v1/images")
async def delete_image(request: web.Request) -> web.StreamResponse:
    """Forget an image and all that no other image needs: ``Purged``."""
    return reply(await request.app[SERVICES].purge.image(required(request, "ref")))


@ROUTES.delete("/v1/tags")
async def delete_tag(request: web.Request) -> web.StreamResponse:
    """Forget what a tag points to, so that the next pull asks the registry: ``Purged``."""
    return reply(await request.app[SERVICES].purge.tag(required(request, "ref")))


def _summaries(services: Services) -> list[ImageSummary]:
    ingest = services.ingest
    return [
        ImageSummary(
            names=record.names,
            manifest_digest=record.manifest_digest,
            chain_id=record.chain_id,
            platform=record.platform,
            state=_state(record, ingest.layers, ingest.chains),
            layers=len(record.diff_ids),
            blob_bytes=record.blob_bytes,
            seen_at=record.seen_at,
            warmed=record.warmed,
        )
        for record in ingest.images.known()
    ]


def _state(record: ImageRecord, layers: Layers, chains: Chains) -> str:
    if not record.chain_id or chains.built(record.chain_id) is not None:
        return "ready"
    if any(layers.failure(diff_id) is not None for diff_id in record.diff_ids):
        return "failed"
    if any(layers.is_running(diff_id) for diff_id in record.diff_ids):
        return "indexing"
    ready = sum(layers.is_ready(diff_id) for diff_id in record.diff_ids)
    return f"{ready} of {len(record.diff_ids)}" if ready else "seen"
