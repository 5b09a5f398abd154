"""The chunk store is brought back below its quota before writers meet it, what nodes use last."""

from __future__ import annotations

from fastpull.cache.digest import ChunkId
from fastpull.cache.memory_store import MemoryChunkStore
from fastpull.cache.store import Encoding, StoredChunk
from fastpull.proxy.housekeeping import tidy
from fastpull.proxy.recently_served import RecentlyServed

DATA = bytes(4000)


def filled(count: int) -> tuple[MemoryChunkStore, list[ChunkId]]:
    store = MemoryChunkStore(quota_bytes=100 * 4256)
    ids = [ChunkId(bytes([n]) * 32) for n in range(count)]
    for chunk in ids:
        store.put_many([(chunk, StoredChunk(Encoding.RAW, len(DATA), DATA))])
    return store, ids


def test_a_store_with_room_is_left_alone() -> None:
    store, ids = filled(80)

    assert tidy(store, RecentlyServed(bits=1 << 12)) == 0
    assert all(store.has(ids))


def test_a_full_store_loses_what_was_used_least_recently_but_not_what_nodes_use() -> None:
    store, ids = filled(98)
    recent = RecentlyServed(bits=1 << 15)
    recent.add(ids[:3])

    freed = tidy(store, recent)

    assert freed > 0
    assert store.stats().live_bytes <= store.stats().quota_bytes * 0.9
    assert all(store.has(ids[:3])), "the oldest, but in use"
    assert not store.has([ids[3]])[0]
    assert store.has([ids[-1]])[0]
