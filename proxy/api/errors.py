"""Failures of ``/v1`` as ``ErrorBody``. The table is the only place of ``/v1`` that knows HTTP statuses of errors.

A node takes an answer of 500 and above as "this proxy is not well" and turns to another. So what is wrong with an
image or with its registry is told with 4xx; 424 means: we are well, the registry behind us is not.
"""

from __future__ import annotations

import logging

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from fastpull.cache.errors import CacheError, FrameError, MalformedDigestError
from fastpull.cache.wire import ErrorBody
from fastpull.image.errors import ImageError
from fastpull.proxy.errors import (
    BlobUnknownError,
    DeniedError,
    MalformedNameError,
    ManifestUnknownError,
    MirrorError,
    RangeNotSatisfiableError,
    RepositoryUnknownError,
    UpstreamForbiddenError,
    UpstreamUnknownError,
)
from fastpull.proxy.ingest.chains import ChainUnknownError
from fastpull.proxy.ingest.failures import LayerFailedError, remedy_for
from fastpull.proxy.ingest.images import ImageUnknownError
from fastpull.proxy.ingest.warm import TooManyWarmsError

log = logging.getLogger(__name__)


class RequestError(Exception):
    """The request can not be right. The text says why."""

    def __init__(self, error: str, remedy: str = "", *, status: int = 400) -> None:
        super().__init__(error)
        self.remedy = remedy
        self.status = status


_STATUS: tuple[tuple[type[Exception], int], ...] = (
    (MalformedDigestError, 400),
    (MalformedNameError, 400),
    (FrameError, 400),
    (msgspec.DecodeError, 400),
    (ImageUnknownError, 404),
    (ChainUnknownError, 404),
    (ManifestUnknownError, 404),
    (BlobUnknownError, 404),
    (RepositoryUnknownError, 404),
    (UpstreamUnknownError, 404),
    (DeniedError, 403),
    (UpstreamForbiddenError, 403),
    (RangeNotSatisfiableError, 416),
    (LayerFailedError, 422),
    (TooManyWarmsError, 429),
    (ImageError, 422),
    (MirrorError, 424),
    (CacheError, 503),
    (OSError, 503),
)


@web.middleware
async def error_bodies(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn what a ``/v1`` handler raises into JSON; leave other paths alone."""
    if not request.path.startswith("/v1/"):
        return await handler(request)
    try:
        return await handler(request)
    except web.HTTPException as exc:
        if exc.status < 400:
            raise
        return answer(exc.status, f"{request.method} {request.path[:200]}: {exc.reason}")
    except RequestError as exc:
        return answer(exc.status, str(exc), exc.remedy)
    except Exception as exc:
        status = next((status for kind, status in _STATUS if isinstance(exc, kind)), 500)
        if status == 500:
            log.exception("%s %s failed", request.method, request.path)
            return answer(500, "internal error", "look into the proxy's log")
        response = answer(status, str(exc) or type(exc).__name__, remedy_for(exc) if status in (403, 422, 424) else "")
        if isinstance(exc, RangeNotSatisfiableError):
            response.headers["Content-Range"] = f"bytes */{exc.size}"
        return response


def answer(status: int, error: str, remedy: str = "") -> web.Response:
    body = msgspec.json.encode(ErrorBody(error=error, remedy=remedy))
    return web.Response(status=status, body=body, content_type="application/json")
