"""A follower's answers to GET and HEAD of complete blobs, where the fast lane does not give them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping

from aiohttp import web

from fastpull.proxy import metrics
from fastpull.proxy.errors import MirrorError
from fastpull.proxy.mirror.blob_heads import begin_of, blob_headers, wanted_range
from fastpull.proxy.mirror.shelf import BlobTarget, find_blob
from fastpull.proxy.ranges import parse_content_range
from fastpull.proxy.workers.shelf import LearnedShelf

log = logging.getLogger(__name__)

_SENT = metrics.CLIENT_BYTES.labels("blob")


class FollowerBlobs:
    """Answers from the shelf, and learns from the leader's answers what the shelf may hold."""

    def __init__(self, shelf: LearnedShelf) -> None:
        self._shelf = shelf

    def find(self, request: web.Request) -> BlobTarget | None:
        """The blob that a request is about; ``None`` = none, or none of ours to answer.

        A request that has passed a proxy may have passed this one: the leader knows (``upstream/via.py``).
        """
        if request.method not in ("GET", "HEAD") or "Via" in request.headers or request.body_exists:
            return None
        return find_blob(self._shelf, request.rel_url.raw_path_qs)

    async def answer(self, request: web.Request, blob: BlobTarget) -> web.StreamResponse | None:
        """The answer, sent; ``None`` = the leader's turn, nothing was sent."""
        opened = self._shelf.open(blob.digest)
        if opened is None:
            return None
        fd, size = opened
        try:
            if request.method == "HEAD":
                headers = {**blob_headers(blob.digest, blob.namespace), "Content-Length": str(size)}
                response: web.StreamResponse | None = web.Response(status=200, headers=headers)
            else:
                response = await self._send(request, blob, fd, size)
        finally:
            os.close(fd)
        if response is not None:
            metrics.REQUESTS.labels("blobs", "hit", blob.label).inc()
        return response

    async def _send(self, request: web.Request, blob: BlobTarget, fd: int, size: int) -> web.StreamResponse | None:
        try:
            span, response = begin_of(wanted_range(request, blob.digest), size, blob.digest, blob.namespace)
        except MirrorError:
            return None
        try:
            await response.begin(request)
            await response.send(fd, *span)
            _SENT.inc(span.length)
        except (ConnectionError, TimeoutError):
            response.cut()
        except OSError as exc:
            log.warning("blob %s can not be read: %s", blob.digest, exc)
            self._shelf.forget(blob.digest)
            response.cut()
        except BaseException:
            response.cut()
            raise
        return response

    def learn(self, blob: BlobTarget, status: int, headers: Mapping[str, str]) -> None:
        """Take the size out of the head of the leader's answer."""
        size = blob_size(status, headers)
        if size is not None:
            self._shelf.learn(blob.digest, size)


def blob_size(status: int, headers: Mapping[str, str]) -> int | None:
    """How long the leader says that the whole blob is. Pure."""
    if status == 206:
        content = parse_content_range(headers.get("Content-Range"))
        return None if content is None else content.size
    length = headers.get("Content-Length", "")
    return int(length) if status == 200 and length.isascii() and length.isdigit() else None
