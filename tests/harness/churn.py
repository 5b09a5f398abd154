"""An hour of traffic through a chunk store that is too small for it, on a clock of its own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fastpull.cache.digest import ChunkId
from fastpull.cache.lmdb_store import LmdbChunkStore
from fastpull.cache.store import Encoding, StoredChunk

_MIB = 1 << 20
_HOUR = 3600.0
_BATCH_BYTES = 4 * _MIB
_POOL = random.Random(1).randbytes(4 * _MIB)


@dataclass
class Churn:
    """What was seen at every sample."""

    logical_bytes: int = 0
    evicted_chunks: int = 0
    largest_live: float = 0.0  # of the quota
    largest_file: float = 0.0  # of the live bytes
    samples: int = 0
    lost: list[str] = field(default_factory=list)  # chunks of the mounted chain, or reads that changed


def content(number: int) -> bytes:
    """Of a size as FastCDC cuts; two of the same number are alike."""
    rng = random.Random(number)
    start = rng.randrange(len(_POOL) // 2)
    return number.to_bytes(8, "little") + _POOL[start : start + rng.randint(16 << 10, 120 << 10)]


def name(number: int) -> ChunkId:
    return ChunkId(random.Random(-number - 1).randbytes(32))


def churn(path: Path, *, logical_bytes: int, quota_bytes: int, durable: bool) -> Churn:
    """A chain of a quarter of the quota is mounted and read now and then; images come and go around it."""
    outcome = Churn()
    now = [0.0]
    store = LmdbChunkStore.open(path, quota_bytes=quota_bytes, durable=durable)
    store.clock = lambda: now[0]
    try:
        mounted = _put_chain(store, quota_bytes // 4)
        names = {name(number) for number in mounted}
        store.protect(names.__contains__)
        numbers = iter(range(1_000_000, 1 << 40))
        added = 0
        rng = random.Random(2)
        for batch in _batches(numbers, logical_bytes):
            with store.view() as view:  # a read in flight: what it has found stays what it is
                victim = rng.choice(mounted)
                found = view.get(name(victim))
                store.put_many(batch)
                if found is None or bytes(found.data) != content(victim):
                    outcome.lost.append(f"chunk {victim} of the mounted chain, at {now[0]:.0f} s")
            added += len(batch)
            size = sum(len(stored.data) for _, stored in batch)
            outcome.logical_bytes += size
            now[0] += _HOUR * size / logical_bytes
            if rng.random() < 0.2:
                store.touch([chunk for chunk, _ in batch[::5]])
            if rng.random() < 0.1:  # as housekeeping does
                store.flush()
            _sample(store, outcome)
        outcome.evicted_chunks = added + len(mounted) - store.stats().chunks
        here = store.has([name(number) for number in mounted])
        outcome.lost += [f"chunk {number}" for number, is_here in zip(mounted, here, strict=True) if not is_here]
    finally:
        store.close()
    return outcome


def _put_chain(store: LmdbChunkStore, total: int) -> list[int]:
    numbers = []
    while total > 0:
        batch = [(name(n), _stored(n)) for n in range(len(numbers), len(numbers) + 32)]
        numbers += range(len(numbers), len(numbers) + 32)
        store.put_many(batch)
        total -= sum(len(stored.data) for _, stored in batch)
    return numbers


def _batches(numbers: Iterator[int], total: int) -> Iterator[list[tuple[ChunkId, StoredChunk]]]:
    while total > 0:
        batch, size = [], 0
        while size < _BATCH_BYTES:
            number = next(numbers)
            stored = _stored(number)
            batch.append((name(number), stored))
            size += len(stored.data)
        total -= size
        yield batch


def _stored(number: int) -> StoredChunk:
    data = content(number)
    return StoredChunk(Encoding.RAW, len(data), data)


def _sample(store: LmdbChunkStore, outcome: Churn) -> None:
    stats = store.stats()
    outcome.samples += 1
    outcome.largest_live = max(outcome.largest_live, stats.live_bytes / stats.quota_bytes)
    if stats.live_bytes > stats.quota_bytes // 2:  # the fixed parts are most of a store that is nearly empty
        outcome.largest_file = max(outcome.largest_file, stats.file_bytes / stats.live_bytes)
