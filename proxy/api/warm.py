"""``/v1/warm``: have an image pulled, verified, ingested and kept, and watch it."""

from __future__ import annotations

from aiohttp import web

from fastpull.cache.wire import WarmRequest
from fastpull.proxy.api.errors import RequestError
from fastpull.proxy.api.messaging import platform_of, read_message, reply, seconds_of
from fastpull.proxy.services import SERVICES

ROUTES = web.RouteTableDef()

_FIRST_WAIT_SECONDS = 0.3  # what is warm already is done within that, so that one request tells all
_MOST_WAIT_SECONDS = 60.0


@ROUTES.post("/v1/warm")
async def post_warm(request: web.Request) -> web.StreamResponse:
    """``WarmRequest`` → ``WarmState``. The same image asked for twice is one job."""
    message = await read_message(request, WarmRequest)
    if not message.image:
        raise RequestError("image is empty", "name an image, for example docker.io/library/python:3.12")
    state = await request.app[SERVICES].warms.start(
        message.image, platform_of(message.platform), wait_seconds=_FIRST_WAIT_SECONDS
    )
    return reply(state, status=200 if state.stage in ("done", "failed") else 202)


@ROUTES.get("/v1/warm/{id}")
async def get_warm(request: web.Request) -> web.StreamResponse:
    """``WarmState``; ``wait=s`` waits for the job's end."""
    warms = request.app[SERVICES].warms
    job = request.match_info["id"]
    state = await warms.get(job, wait_seconds=seconds_of(request, "wait", _MOST_WAIT_SECONDS))
    if state is None:
        raise RequestError(f"no warm job {job[:40]}", "the proxy has restarted since: warm again", status=404)
    return reply(state)
