"""The parts that all answers of ``/v2`` share. Pure."""

from __future__ import annotations

import json
import math

from aiohttp import web

from fastpull.proxy.errors import MirrorError, RangeNotSatisfiableError, answer_for

API_VERSION = {"Docker-Distribution-API-Version": "registry/2.0"}


def common_headers(namespace: str | None) -> dict[str, str]:
    """``OCI-Namespace`` repeats the ``ns`` of the request (distribution-spec, "Registry Proxying")."""
    return {**API_VERSION, "OCI-Namespace": namespace} if namespace else dict(API_VERSION)


def error_response(error: MirrorError, namespace: str | None = None) -> web.Response:
    """An error as OCI clients know it (distribution-spec, "Error Codes")."""
    answer = answer_for(error)
    headers = common_headers(namespace)
    if isinstance(error, RangeNotSatisfiableError):
        headers["Content-Range"] = f"bytes */{error.size}"
    if answer.status == 503:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_seconds or 1)))
    if answer.status == 405:
        headers["Allow"] = "GET, HEAD"
    body = {"errors": [{"code": answer.code, "message": str(error)}]}
    return web.Response(
        status=answer.status, headers=headers, body=json.dumps(body).encode(), content_type="application/json"
    )


def warning(text: str) -> str:
    """A Warning header that containerd and the kubelet show to people (RFC 7234, 5.5)."""
    printable = "".join(c if " " <= c <= "~" else "?" for c in text[:400])
    escaped = printable.replace("\\", "\\\\").replace('"', '\\"')
    return f'299 - "{escaped}"'
