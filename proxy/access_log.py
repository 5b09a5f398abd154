"""One JSON line for each request. Never a header, never a query value that could be a secret."""

from __future__ import annotations

import time

import msgspec
from aiohttp.abc import AbstractAccessLogger
from aiohttp.web import BaseRequest, StreamResponse


class JsonAccessLogger(AbstractAccessLogger):
    """``time`` (when it began), ``remote``, ``method``, ``path``, ``ns``, ``range``, ``status``, ``bytes`` (sent, with
    or without the head), ``seconds``, ``agent``.

    A request stands in the log once: the process that holds the client's connection writes it, whoever answers.
    """

    def log(self, request: BaseRequest, response: StreamResponse, time: float) -> None:
        if request.remote == "":
            return  # over a unix socket: from another serving process, which logs it with the client's address
        self.logger.info("%s", line(request, response, time).decode())


def line(request: BaseRequest, response: StreamResponse, seconds: float) -> bytes:
    return msgspec.json.encode(
        {
            "time": round(time.time() - seconds, 3),
            "remote": request.remote or "",
            "method": request.method,
            "path": request.path,
            "ns": request.query.get("ns", ""),
            "range": request.headers.get("Range", ""),
            "status": response.status,
            "bytes": response.body_length,
            "seconds": round(seconds, 6),
            "agent": request.headers.get("User-Agent", "")[:200],
        }
    )
