"""Keeps the stores within their quotas before writers run into them."""

from __future__ import annotations

import asyncio
import logging

from fastpull.cache.errors import CacheError
from fastpull.cache.resident import return_freed_memory
from fastpull.cache.store import ChunkStore
from fastpull.cache.writer import Writer
from fastpull.proxy import metrics
from fastpull.proxy.recently_served import RecentlyServed

log = logging.getLogger(__name__)

_PERIOD_SECONDS = 15.0
# A worker that meets the full quota evicts by age alone: it does not know what nodes use. So make room earlier.
_HIGH_WATER = 0.92
_LOW_WATER = 0.88


async def keep_house(store: ChunkStore, writer: Writer, recently_served: RecentlyServed) -> None:
    """For ever: record what was used, and evict least recently used chunks, those that nodes use now last."""
    while True:
        await asyncio.sleep(_PERIOD_SECONDS)
        try:
            await writer.run(tidy, store, recently_served)
        except (CacheError, OSError) as exc:
            log.warning("can not keep the chunk store in its quota: %s", exc)


def tidy(store: ChunkStore, recently_served: RecentlyServed) -> int:
    """One round; blocks. Return the bytes freed."""
    store.flush()
    store.release_resident()  # what was sent stays in the page cache, but is no memory of ours
    return_freed_memory()
    stats = store.stats()
    if stats.live_bytes <= stats.quota_bytes * _HIGH_WATER:
        return 0
    freed = store.evict(int(stats.quota_bytes * _LOW_WATER), in_use=recently_served.__contains__)
    metrics.CHUNK_BYTES_EVICTED.inc(freed)
    log.info("evicted %d bytes of chunks; %d of %d are left", freed, stats.live_bytes - freed, stats.quota_bytes)
    return freed
