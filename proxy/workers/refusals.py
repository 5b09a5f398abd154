"""How a follower tells that there is no leader to ask: in the words of the API that was asked. Pure."""

from __future__ import annotations

import msgspec
from aiohttp import web

from fastpull.cache.wire import ErrorBody
from fastpull.proxy.errors import MirrorError
from fastpull.proxy.mirror.answers import error_response


def refusal(path: str, cause: str) -> web.Response:
    """503: containerd goes on to its next host, a node to another proxy."""
    if path == "/v2" or path.startswith("/v2/"):
        return error_response(MirrorError(cause))
    if path.startswith("/v1/"):
        return web.Response(
            status=503, body=msgspec.json.encode(ErrorBody(error=cause)), content_type="application/json"
        )
    return web.Response(status=503, text=cause + "\n")
