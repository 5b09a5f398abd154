"""One request for bytes of a blob, and whether its answer can be believed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp

from fastpull.cache.digest import Digest
from fastpull.proxy.errors import BlobUnknownError, UpstreamInvalidError
from fastpull.proxy.ranges import ByteRange, parse_content_range
from fastpull.proxy.upstream.client import Upstream


@dataclass(frozen=True, slots=True)
class BlobSource:
    """Where a blob comes from. ``size`` is what the manifest says, ``None`` = upstream tells."""

    upstream: str
    repository: str
    digest: Digest
    size: int | None = None


@dataclass(frozen=True, slots=True)
class BodyRange:
    """What the body of an answer holds: these bytes of a blob of ``size``."""

    start: int
    stop: int
    size: int
    is_whole: bool  # 200: the Range was ignored


def read_answer(status: int, headers: Mapping[str, str], asked: ByteRange, size: int | None) -> BodyRange:
    """Compare an answer with what was asked. Pure. Raise ``UpstreamInvalidError``.

    ``size`` is what is known of the blob. An answer that starts elsewhere, claims another total, or whose
    Content-Length contradicts its Content-Range is refused: its bytes would end up in the wrong place.
    """
    length = _content_length(headers)
    if status == 416:
        content = parse_content_range(headers.get("Content-Range"))
        total = content.size if content is not None else None
        raise UpstreamInvalidError(f"range {asked.start}-{asked.stop} refused, of {total} bytes")
    if status == 200:
        total = length if length is not None else size
        if total is None:
            raise UpstreamInvalidError("an answer without length")
        _check_size(total, size)
        return BodyRange(0, total, total, is_whole=True)
    content = parse_content_range(headers.get("Content-Range"))
    if content is None or content.range is None:
        raise UpstreamInvalidError(f"206 with Content-Range {headers.get('Content-Range', '')[:80]!r}")
    span, total = content.range, content.size if content.size is not None else size
    if total is None:
        raise UpstreamInvalidError("206 without the size of the whole")
    _check_size(total, size)
    if span.start != asked.start or span.stop > min(asked.stop, total):
        raise UpstreamInvalidError(f"206 with bytes {span.start}-{span.stop}, asked for {asked.start}-{asked.stop}")
    if length is not None and length != span.length:
        raise UpstreamInvalidError(f"206 with {length} bytes and a Content-Range of {span.length}")
    return BodyRange(span.start, span.stop, total, is_whole=False)


def _check_size(total: int, size: int | None) -> None:
    if size is not None and total != size:
        raise UpstreamInvalidError(f"a blob of {total} bytes where {size} are right")


def _content_length(headers: Mapping[str, str]) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None


@asynccontextmanager
async def open_range(
    upstream: Upstream, source: BlobSource, asked: ByteRange, size: int | None
) -> AsyncIterator[tuple[BodyRange, aiohttp.StreamReader]]:
    """Ask for bytes of a blob. Raise ``BlobUnknownError`` and what ``Upstream.request`` raises.

    An empty blob has no range; storage answers 416 to that, so it is asked for again without one.
    """
    path = blob_path(source)
    headers = {"Range": f"bytes={asked.start}-{asked.stop - 1}"}
    async with upstream.request("GET", path, repository=source.repository, headers=headers) as response:
        if response.status == 404:
            raise BlobUnknownError(source.upstream, source.repository, source.digest)
        if response.status != 416 or asked.start > 0:
            yield _read(upstream, response, asked, size), response.content
            return
    async with upstream.request("GET", path, repository=source.repository) as response:
        if response.status == 404:
            raise BlobUnknownError(source.upstream, source.repository, source.digest)
        yield _read(upstream, response, asked, size), response.content


async def stat_blob(upstream: Upstream, source: BlobSource) -> int:
    """The size of a blob, from upstream. A GET of one byte, because a presigned link is good for GET only."""
    async with open_range(upstream, source, ByteRange(0, 1), source.size) as (body, _content):
        return body.size


def blob_path(source: BlobSource) -> str:
    return f"{source.repository}/blobs/{source.digest}"


def _read(upstream: Upstream, response: aiohttp.ClientResponse, asked: ByteRange, size: int | None) -> BodyRange:
    try:
        return read_answer(response.status, response.headers, asked, size)
    except UpstreamInvalidError as exc:
        raise UpstreamInvalidError(f"{upstream.name} sent {exc}") from exc
