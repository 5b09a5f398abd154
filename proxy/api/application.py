"""``/v1`` and the health routes, put together."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler

from fastpull.proxy import metrics
from fastpull.proxy.api import chains, chunks, device, health, images, plans, scrub, status, warm
from fastpull.proxy.api.errors import error_bodies


@web.middleware
async def count_answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count what ``/v1`` answers, by route and status; a client that leaves has had no answer."""
    response = await handler(request)
    if request.path.startswith("/v1/"):
        resource = request.match_info.route.resource
        metrics.API_REQUESTS.labels(resource.canonical if resource else "none", str(response.status)).inc()
    return response


def add_api(app: web.Application) -> None:
    """Add the routes; when they are asked, ``app[SERVICES]`` is what they stand on."""
    app.middlewares.extend((count_answers, error_bodies))
    for routes in (chains, chunks, device, health, images, plans, scrub, status, warm):
        app.add_routes(routes.ROUTES)
