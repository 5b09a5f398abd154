"""``/v1`` and the health routes, put together."""

from __future__ import annotations

from aiohttp import web

from fastpull.proxy.api import chains, chunks, device, health, images, plans, scrub, status, warm
from fastpull.proxy.api.errors import error_bodies


def add_api(app: web.Application) -> None:
    """Add the routes; when they are asked, ``app[SERVICES]`` is what they stand on."""
    app.middlewares.append(error_bodies)
    for routes in (chains, chunks, device, health, images, plans, scrub, status, warm):
        app.add_routes(routes.ROUTES)
