"""Answers to GET and HEAD of a blob."""

from __future__ import annotations

import asyncio
import logging
import os

from aiohttp import web

from fastpull.cache.digest import Digest
from fastpull.proxy import metrics
from fastpull.proxy.errors import BlobFillError, BlobStoreError, BlobStoreFullError, BlobUnknownError, MirrorError
from fastpull.proxy.mirror.blob_heads import begin_of, blob_headers, wanted_range
from fastpull.proxy.mirror.blobs import BlobHandle, Blobs, BlobSource
from fastpull.proxy.mirror.manifest_types import MAX_MANIFEST_BYTES, manifest_type
from fastpull.proxy.mirror.pass_through import pass_through
from fastpull.proxy.mirror.recent import Recent
from fastpull.proxy.mirror.sending import FileResponse
from fastpull.proxy.ranges import ByteRange, RequestedRange
from fastpull.proxy.upstream.registry import Upstreams

log = logging.getLogger(__name__)

_CHECKED_SECONDS = 3600.0

_SENT = metrics.CLIENT_BYTES.labels("blob")


class BlobAnswers:
    """From disk, from a fill that runs, or, when nothing can be kept, straight from upstream."""

    def __init__(self, blobs: Blobs, upstreams: Upstreams, answer_seconds: float) -> None:
        self._answer_seconds = answer_seconds
        self._blobs = blobs
        self._upstreams = upstreams
        self._checked: Recent[Digest, bool] = Recent(_CHECKED_SECONDS, limit=65536)

    async def head(self, source: BlobSource, namespace: str | None) -> tuple[web.StreamResponse, str]:
        size = await self._blobs.stat(source)
        if size <= MAX_MANIFEST_BYTES:
            async with self._blobs.open(source) as blob:
                await self.refuse_manifest(source, blob)
        headers = {**blob_headers(source.digest, namespace), "Content-Length": str(size)}
        return web.Response(status=200, headers=headers), "hit"

    async def get(
        self, request: web.Request, source: BlobSource, namespace: str | None
    ) -> tuple[web.StreamResponse, str]:
        """The answer, sent, and its outcome. Raise ``MirrorError`` only while nothing was sent."""
        wanted = wanted_range(request, source.digest)
        if self._blobs.has(source.digest):
            outcome = "hit"
        else:
            outcome = "shared" if self._blobs.is_filling(source.digest) else "miss"
        try:
            async with self._blobs.open(source, first_offset=_first_offset(wanted)) as blob:
                await self.refuse_manifest(source, blob)
                span, response = begin_of(wanted, blob.size, source.digest, namespace)
                unverified = _may_be_unverified(wanted, span, blob.size)
                if not blob.is_complete:
                    await self._first_byte(blob, span, unverified=unverified)
                await self._send(request, response, source, blob, span, unverified=unverified)
        except (BlobFillError, BlobStoreFullError, BlobStoreError) as exc:
            cause = exc.cause if isinstance(exc, BlobFillError) else exc
            if not isinstance(cause, BlobStoreFullError | BlobStoreError):
                raise
            log.warning("blob %s is passed through: %s", source.digest, cause)
            size = await self._blobs.stat(source)
            span, response = begin_of(wanted, size, source.digest, namespace)
            await self._send_uncached(request, response, source, span, size)
            outcome = "bypass"
        return response, outcome

    def is_checked(self, digest: Digest) -> bool:
        """Has ``refuse_manifest`` let this blob pass?"""
        return self._checked.get(digest) is not None

    async def refuse_manifest(self, source: BlobSource, blob: BlobHandle) -> None:
        """Raise ``BlobUnknownError`` for a manifest that is asked for as a blob.

        Some registries serve them here. containerd, which asks so as a last resort, would store it as
        ``application/octet-stream`` and never be able to use the image again.
        """
        if self.is_checked(source.digest):
            return
        if await _is_manifest(blob):
            raise BlobUnknownError(source.upstream, source.repository, source.digest)
        self._checked.put(source.digest, True)

    async def _first_byte(self, blob: BlobHandle, span: ByteRange, *, unverified: bool) -> None:
        """Wait for the first byte of the body, so that a transfer that fails before it becomes an honest status.

        containerd gives up after three short bodies without progress, and never after a 503. It also gives up on
        a head that does not come, so after a while the head is sent without.
        """
        try:
            async with asyncio.timeout(self._answer_seconds):
                await blob.wait_readable(span.start, unverified=unverified)
        except TimeoutError:
            log.info("blob %s: no byte at %d within %g s", blob.digest, span.start, self._answer_seconds)

    async def _send(
        self,
        request: web.Request,
        response: FileResponse,
        source: BlobSource,
        blob: BlobHandle,
        span: ByteRange,
        *,
        unverified: bool,
    ) -> None:
        """Follow the blob to the end of the span."""
        position = span.start
        try:
            await response.begin(request)
            while position < span.stop:
                stop = min(span.stop, await blob.wait_readable(position, unverified=unverified))
                await response.send(blob.fd, position, stop)
                _SENT.inc(stop - position)
                position = stop
        except BlobFillError as exc:
            if isinstance(exc.cause, BlobStoreFullError | BlobStoreError):
                await self._send_uncached(request, response, source, ByteRange(position, span.stop), blob.size)
            else:
                response.cut()
        except (ConnectionError, TimeoutError):
            response.cut()  # the client has hung up, as containerd does when it has enough
        except OSError as exc:
            log.warning("blob %s can not be read and is dropped: %s", source.digest, exc)
            self._blobs.drop(source.digest)
            response.cut()
        except BaseException:
            response.cut()
            raise

    async def _send_uncached(
        self, request: web.Request, response: FileResponse, source: BlobSource, span: ByteRange, size: int
    ) -> None:
        try:
            await response.begin(request)
            async for data in pass_through(self._upstreams.get(source.upstream), source, span, size):
                await response.send_bytes(data)
                _SENT.inc(len(data))
        except (MirrorError, ConnectionError, TimeoutError) as exc:
            log.info("blob %s was not passed through: %s", source.digest, exc)
            response.cut()
        except BaseException:
            response.cut()
            raise


def _may_be_unverified(wanted: RequestedRange | None, span: ByteRange, size: int) -> bool:
    """Who asks for all or for the rest gets the last bytes only when they are verified.

    Who names the end reads here and there (the footer of an eStargz layer), checks on its own, and would
    else wait for the whole blob.
    """
    return wanted is not None and not wanted.is_open and span != (0, size)


def _first_offset(wanted: RequestedRange | None) -> int:
    return wanted.first or 0 if wanted is not None else 0


async def _is_manifest(blob: BlobHandle) -> bool:
    """Reads no more than the first byte of what is none."""
    if blob.size == 0:
        await blob.wait_complete()  # its head is all that there is to hold back
    if not 0 < blob.size <= MAX_MANIFEST_BYTES:
        return False
    await blob.wait_readable(0, unverified=True)
    if os.pread(blob.fd, 1, 0) != b"{":
        return False
    await blob.wait_readable(blob.size - 1)  # held back until verified
    return manifest_type(os.pread(blob.fd, blob.size, 0)) is not None
