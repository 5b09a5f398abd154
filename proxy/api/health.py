"""``/healthz``, ``/readyz`` and ``/metrics``."""

from __future__ import annotations

import asyncio

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from fastpull.proxy import metrics
from fastpull.proxy.services import SERVICES

ROUTES = web.RouteTableDef()


@ROUTES.get("/healthz")
async def healthz(_request: web.Request) -> web.StreamResponse:
    """The process answers."""
    return web.Response(text="ok\n")


@ROUTES.get("/readyz")
async def readyz(request: web.Request) -> web.StreamResponse:
    """The store takes writes; else 503 and why, so that a load balancer turns to others."""
    health = request.app[SERVICES].health
    return web.Response(text="ok\n") if health.is_ready else web.Response(status=503, text=health.problem + "\n")


@ROUTES.get("/metrics")
async def get_metrics(request: web.Request) -> web.StreamResponse:
    """Prometheus text format; the table of names stands in ``proxy/metrics.py``."""
    services = request.app[SERVICES]
    stats = await asyncio.to_thread(services.store.stats)
    metrics.CHUNK_STORE_BYTES.set(stats.live_bytes)
    metrics.CHUNK_STORE_CHUNKS.set(stats.chunks)
    return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})
