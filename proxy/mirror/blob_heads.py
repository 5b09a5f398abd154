"""What a GET of a blob asks for, and the head of its answer."""

from __future__ import annotations

from aiohttp import web

from fastpull.cache.digest import Digest
from fastpull.proxy.mirror.answers import common_headers
from fastpull.proxy.mirror.sending import FileResponse
from fastpull.proxy.ranges import ByteRange, RequestedRange, parse_range


def blob_headers(digest: Digest, namespace: str | None) -> dict[str, str]:
    return {
        **common_headers(namespace),
        "Docker-Content-Digest": str(digest),
        "ETag": f'"{digest}"',
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }


def begin_of(
    wanted: RequestedRange | None, size: int, digest: Digest, namespace: str | None
) -> tuple[ByteRange, FileResponse]:
    """The bytes to send and the answer that they belong to. Raise ``RangeNotSatisfiableError``."""
    headers = blob_headers(digest, namespace)
    if wanted is None:
        return ByteRange(0, size), FileResponse(200, headers, size)
    span = wanted.resolve(size)
    headers["Content-Range"] = f"bytes {span.start}-{span.stop - 1}/{size}"
    return span, FileResponse(206, headers, span.length)


def wanted_range(request: web.Request, digest: Digest) -> RequestedRange | None:
    """RFC 9110, 13.1.5: with an If-Range of another state the Range does not count."""
    condition = request.headers.get("If-Range")
    if condition is not None and condition.strip() != f'"{digest}"':
        return None
    return parse_range(request.headers.get("Range"))
