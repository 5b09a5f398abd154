"""``/v1`` and the health routes, put together."""

from __future__ import annotations

from aiohttp import web
from aiohttp.typedefs import Handler

from fastpull.proxy import metrics
from fastpull.proxy.api import chains, chunks, device, health, images, plans, scrub, status, warm
from fastpull.proxy.api.errors import error_bodies
from fastpull.proxy.services import SERVICES

_CHAIN_ID_LENGTH = len("sha256:") + 64


@web.middleware
async def count_answers(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count what ``/v1`` answers, by route and status; a client that leaves has had no answer."""
    response = await handler(request)
    if request.path.startswith("/v1/"):
        resource = request.match_info.route.resource
        metrics.API_REQUESTS.labels(resource.canonical if resource else "none", str(response.status)).inc()
    return response


@web.middleware
async def note_uses(request: web.Request, handler: Handler) -> web.StreamResponse:
    """A chain that a node names in path or query was used, whatever the answer; see ``chain_uses.py``."""
    if request.path.startswith("/v1/"):
        chain = request.match_info.get("chain") or request.query.get("chain", "")
        if len(chain) == _CHAIN_ID_LENGTH:
            services = request.app[SERVICES]
            # Only what is known: anybody may name anything, and each name costs memory.
            if services.uses.has(chain) or services.ingest.chains.diff_ids(chain) is not None:
                services.uses.note(chain)
    return await handler(request)


def add_api(app: web.Application) -> None:
    """Add the routes; when they are asked, ``app[SERVICES]`` is what they stand on."""
    app.middlewares.extend((count_answers, error_bodies, note_uses))
    for routes in (chains, chunks, device, health, images, plans, scrub, status, warm):
        app.add_routes(routes.ROUTES)
