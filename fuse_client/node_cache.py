"""Opening the node's chunk store; where its disk does not let us, a small one in memory."""

from __future__ import annotations

import logging
from pathlib import Path

from fastpull.cache.errors import CacheError, StoreVersionError
from fastpull.cache.lmdb_store import LmdbChunkStore
from fastpull.cache.memory_store import MemoryChunkStore
from fastpull.cache.store import ChunkStore

log = logging.getLogger(__name__)

MEMORY_BYTES = 64 << 20


def open_cache(path: Path, quota_bytes: int) -> tuple[ChunkStore, str]:
    """The store, and what is wrong when it is only the one in memory; else an empty text.

    Containers that read would wait for ever for a daemon that a failing disk keeps from starting. Raise
    ``StoreVersionError`` for a store of a newer version.
    """
    # Not durable commit by commit: a cache may lose what came last, and a start must not wait for the disk.
    try:
        return LmdbChunkStore.open(path, quota_bytes=quota_bytes, durable=False), ""
    except StoreVersionError:
        raise
    except CacheError as exc:
        failure = f"the node cache can not be opened: {exc}"
        log.error("%s; %d MiB in memory serve instead until the daemon starts anew", failure, MEMORY_BYTES >> 20)  # noqa: TRY400
        return MemoryChunkStore(quota_bytes=MEMORY_BYTES), failure
