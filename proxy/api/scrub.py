"""``POST /v1/scrub``: check everything that the proxy holds, and drop what is damaged."""

from __future__ import annotations

from contextlib import aclosing

import msgspec
from aiohttp import web

from fastpull.cache.scrub import ScrubRunningError
from fastpull.config.errors import ConfigError
from fastpull.config.units import ByteSize
from fastpull.proxy.api.errors import RequestError
from fastpull.proxy.api.streams import send, whole_or_cut
from fastpull.proxy.services import SERVICES

ROUTES = web.RouteTableDef()


@ROUTES.post("/v1/scrub")
async def post_scrub(request: web.Request) -> web.StreamResponse:
    """``ScrubState`` line by line, twice a second, until ``done``. Who hangs up ends the scrub.

    ``rate`` is in bytes a second, 0 = as fast as it goes. 409 while another one runs.
    """
    try:
        rate = ByteSize.parse(request.query.get("rate", "0"))
    except ConfigError as exc:
        raise RequestError(str(exc)) from exc
    async with aclosing(request.app[SERVICES].scrubs.states(rate)) as states:
        try:
            first = await anext(states)
        except ScrubRunningError as exc:
            raise RequestError(str(exc), exc.remedy, status=409) from exc
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        async with whole_or_cut(request, response):
            await send(response, msgspec.json.encode(first) + b"\n")
            async for state in states:
                await send(response, msgspec.json.encode(state) + b"\n")
            await response.write_eof()
    return response
