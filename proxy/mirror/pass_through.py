"""Blobs that can not be kept: straight from upstream to one client."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

import aiohttp

from fastpull.proxy import metrics
from fastpull.proxy.errors import BlobFillError, MirrorError
from fastpull.proxy.mirror.blob_request import BlobSource, open_range
from fastpull.proxy.ranges import ByteRange
from fastpull.proxy.upstream.client import Upstream

_ATTEMPTS = 4
_PAUSE_SECONDS = 0.2


async def pass_through(upstream: Upstream, source: BlobSource, wanted: ByteRange, size: int) -> AsyncIterator[bytes]:
    """Yield the bytes of a blob, in order, over as many transfers as it takes.

    Of a whole blob the last piece comes only when the digest is right. Raise ``BlobFillError``.
    """
    if wanted != (0, size):
        async for data in _resumed(upstream, source, wanted, size):
            yield data
        return
    digest = hashlib.sha256()
    held = b""
    async for data in _resumed(upstream, source, wanted, size):
        digest.update(data)
        if held:
            yield held
        held = data
    if digest.hexdigest() != source.digest.hex:
        metrics.BLOBS_MISMATCHED.labels(upstream.name).inc()
        raise BlobFillError(source.digest, f"{upstream.name} sent other bytes")
    yield held


async def _resumed(upstream: Upstream, source: BlobSource, wanted: ByteRange, size: int) -> AsyncIterator[bytes]:
    position = wanted.start
    failures = 0
    while position < wanted.stop:
        before = position
        error: BaseException | str = "it ended early"
        try:
            async for data in _once(upstream, source, ByteRange(position, wanted.stop), size):
                position += len(data)
                yield data
        except MirrorError as exc:
            if not exc.is_transient:
                raise BlobFillError(source.digest, exc) from exc
            error = exc
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as exc:
            error = exc
        if position >= wanted.stop:
            return
        failures = 1 if position > before else failures + 1
        if failures > _ATTEMPTS:
            raise BlobFillError(source.digest, error)
        await asyncio.sleep(_PAUSE_SECONDS * failures)


async def _once(upstream: Upstream, source: BlobSource, asked: ByteRange, size: int) -> AsyncIterator[bytes]:
    async with open_range(upstream, source, asked, size) as (body, content):
        position = body.start
        while position < asked.stop and (data := await content.readany()):
            metrics.UPSTREAM_BYTES.labels(upstream.name).inc(len(data))
            fresh = data[max(0, asked.start - position) : asked.stop - position]
            position += len(data)
            if fresh:
                yield fresh
