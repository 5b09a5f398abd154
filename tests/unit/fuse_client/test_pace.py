"""What a fleet's prefetch does to a proxy: never all nodes at once, never more than it may."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from fakes.virtual_time import in_virtual_time
from hypothesis import given
from hypothesis import strategies as st

from fastpull.cache.digest import Digest, chunk_id
from fastpull.cache.memory_store import MemoryChunkStore
from fastpull.cache.tasks import Tasks
from fastpull.cache.wire import Plan
from fastpull.config.node import PrefetchSettings
from fastpull.config.units import ByteSize
from fastpull.fuse_client.fetch.queue import Lane, Want
from fastpull.fuse_client.pace import Pace
from fastpull.fuse_client.prefetch import Prefetcher
from fastpull.image.chunk_map import ChunkMap, pack

CHAIN = Digest("ab" * 32)
CHUNKS, CHUNK_BYTES = 3000, 4000
MAP = ChunkMap.open(
    pack([(n * 4096, CHUNK_BYTES, chunk_id(n.to_bytes(4, "little"))) for n in range(CHUNKS)], CHUNKS * 4096)
)


@given(
    st.integers(1, 10**9),
    st.lists(st.tuples(st.integers(0, 10**7), st.floats(0, 100)), max_size=30),
)
def test_no_time_sees_more_than_its_rate_and_one_piece(rate: int, pieces: list[tuple[int, float]]) -> None:
    """Between any two moments, whatever the pieces and however long somebody dawdles between them."""
    pace, now = Pace(rate), 1000.0
    sent: list[tuple[float, int]] = []
    for size, dawdles in pieces:
        sent.append((now, size))
        now += max(dawdles, pace.pause(size, now))
    for first in range(len(sent)):
        for last in range(first, len(sent)):
            seconds = sent[last][0] - sent[first][0]
            allowed = rate * seconds + sent[last][1]
            assert sum(size for _, size in sent[first : last + 1]) <= allowed * (1 + 1e-6) + 1


def test_without_a_limit_nobody_waits() -> None:
    assert Pace(0).pause(10**12, 5.0) == 0.0


class Proxies:
    """What many nodes ask, and when. ``away_at`` to ``back_at`` nothing is answered."""

    def __init__(self, away_at: float = 0.0, back_at: float = 0.0) -> None:
        self.away_at, self.back_at = away_at, back_at
        self.asked_at: list[float] = []
        self.sent: list[tuple[float, int]] = []

    async def plan(self, chain: Digest) -> Plan:
        self.asked_at.append(asyncio.get_running_loop().time())
        return Plan(chain_id=str(chain))

    async def prefetch(self, _chain: Digest, lane: Lane, wants: Sequence[Want]) -> None:
        assert lane is Lane.BACKFILL
        now = asyncio.get_running_loop().time()
        if self.away_at <= now < self.back_at:
            await asyncio.sleep(self.back_at - now)
        self.sent.append((asyncio.get_running_loop().time(), sum(want.size for want in wants)))


async def prefetch(proxies: Proxies, nodes: int, seed: int = 0, **settings: object) -> None:
    """All nodes mount the chain in the same moment."""
    tasks = Tasks()

    async def warm(*_: object) -> None:
        raise AssertionError("nothing is planned")

    for number in range(nodes):
        store = MemoryChunkStore(quota_bytes=1 << 20)
        prefetcher = Prefetcher(
            proxies,  # type: ignore[arg-type]
            proxies,  # type: ignore[arg-type]
            store,
            PrefetchSettings(**settings),  # type: ignore[arg-type]
            tasks,
            warm=warm,
            uniform=random.Random(seed + number).uniform,
        )
        prefetcher.start(SimpleNamespace(chain=CHAIN, map=MAP, window_bytes=0))  # type: ignore[arg-type]
    while len(tasks):
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("seed", range(0, 4000, 1000))
def test_nodes_that_start_together_do_not_ask_together(seed: int) -> None:
    """Each waits some part of the jitter by itself: no twentieth of it sees much more than its share."""
    proxies = Proxies()
    in_virtual_time(prefetch(proxies, nodes=200, seed=seed, jitter_seconds=10.0))

    assert len(proxies.asked_at) == 200
    assert max(proxies.asked_at) <= 10.0
    crowds = Counter(int(at / 0.5) for at in proxies.asked_at)
    assert len(crowds) == 20
    assert max(crowds.values()) <= 30


def test_without_jitter_a_plan_is_asked_for_at_once() -> None:
    """Who starts one pod now and then waits for nothing."""
    proxies = Proxies()
    in_virtual_time(prefetch(proxies, nodes=5))
    assert max(proxies.asked_at) == 0.0


@pytest.mark.parametrize("rate", [100_000, 1_000_000])
def test_backfill_keeps_its_rate(rate: int) -> None:
    """12 MB: all of them, never more in a time than the rate and a second's worth; a proxy that was away for a minute
    is not met by a minute's bytes.
    """
    proxies = Proxies(away_at=5.0, back_at=65.0)
    in_virtual_time(prefetch(proxies, nodes=1, backfill=True, max_bytes_per_second=ByteSize(rate)))

    sent = proxies.sent
    total = sum(size for _, size in sent)
    assert total == CHUNKS * CHUNK_BYTES
    for first in range(len(sent)):
        for last in range(first, len(sent)):
            seconds = sent[last][0] - sent[first][0]
            assert sum(size for _, size in sent[first : last + 1]) <= rate * seconds + rate + 1
    assert sent[-1][0] <= total / rate + 62, "and no slower than it must be"
