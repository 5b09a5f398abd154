"""``GET /v1/status``: what the proxy holds and does now."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import PackageNotFoundError, version

from aiohttp import web

from fastpull.proxy.api.messages import FillStatus, StatusReport, StoreStatus
from fastpull.proxy.api.messaging import reply
from fastpull.proxy.mirror.blobs import FillProgress
from fastpull.proxy.services import SERVICES, Services

ROUTES = web.RouteTableDef()


@ROUTES.get("/v1/status")
async def get_status(request: web.Request) -> web.StreamResponse:
    services = request.app[SERVICES]
    chunks = await asyncio.to_thread(_chunks, services)
    blob_bytes = services.mirror.blobs.used_bytes
    layers = services.ingest.layers
    return reply(
        StatusReport(
            version=own_version(),
            seconds=round(time.monotonic() - services.health.started, 1),
            data_dir=str(services.settings.data_dir),
            ready=services.health.is_ready,
            problem=services.health.problem,
            images=services.ingest.images.count(),
            chunks=chunks,
            blobs=StoreStatus(
                live_bytes=blob_bytes, file_bytes=blob_bytes, quota_bytes=int(services.settings.cache.blob_bytes)
            ),
            fills=tuple(map(_fill, services.mirror.blobs.fills())),
            ingests=tuple(layers.running()),
            failed=tuple(layers.failed()),
        )
    )


def _fill(fill: FillProgress) -> FillStatus:
    return FillStatus(
        digest=str(fill.source.digest),
        upstream=fill.source.upstream,
        repository=fill.source.repository,
        bytes=fill.bytes,
        size=fill.size,
        readers=fill.readers,
        seconds=round(fill.seconds, 1),
    )


def own_version() -> str:
    try:
        return version("fastpull-proxy")
    except PackageNotFoundError:  # run from a copy that was never installed
        return "unknown"


def _chunks(services: Services) -> StoreStatus:
    stats = services.store.stats()
    return StoreStatus(
        entries=stats.chunks, live_bytes=stats.live_bytes, file_bytes=stats.file_bytes, quota_bytes=stats.quota_bytes
    )
