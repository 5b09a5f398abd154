"""What followers tell, made part of the leader's own: uses for the quotas, counters for the metrics."""

from __future__ import annotations

import asyncio
import os

from fastpull.cache.digest import CHUNK_ID_BYTES, Digest
from fastpull.cache.frames import unpack_ids
from fastpull.proxy.services import Services
from fastpull.proxy.workers.messages import Report
from fastpull.proxy.workers.tally import REPORTED

_IDS_AT_ONCE = 4096  # some ms; then requests have their turn


async def take(services: Services, report: Report) -> None:
    """As if this process had answered. Raise ``ValueError``, ``KeyError`` or ``CacheError`` for what can not be."""
    for count in report.counts:
        counter = REPORTED[count.name]
        (counter.labels(*count.labels) if count.labels else counter).inc(count.amount)
    step = _IDS_AT_ONCE * CHUNK_ID_BYTES
    for start in range(0, len(report.chunks), step):
        chunks = unpack_ids(report.chunks[start : start + step])
        services.recently_served.add(chunks)
        services.store.touch(chunks)
        await asyncio.sleep(0)
    for digest in map(Digest.parse, report.blobs):
        opened = services.mirror.blobs.files.open(digest)  # which notes the use
        if opened is not None:
            os.close(opened[0])
