"""The fetcher against a proxy in this process, with every fault that a network has."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import msgspec
import pytest
from fakes.node_api import FakeProxy, cut_after, ends_early, held, sends, stalls, status

from fastpull.cache.digest import ChunkId, Digest, chunk_id
from fastpull.cache.errors import StoreFullError
from fastpull.cache.frames import HEADER, MISSING_FRAME
from fastpull.cache.memory_store import MemoryChunkStore
from fastpull.cache.tasks import Tasks
from fastpull.cache.writer import Writer
from fastpull.config.node import FetchSettings, NodeSettings
from fastpull.fuse_client.errors import ChunkUnavailableError
from fastpull.fuse_client.fetch.client import ProxyClient
from fastpull.fuse_client.fetch.counters import FetchCounters
from fastpull.fuse_client.fetch.fetcher import Fetcher
from fastpull.fuse_client.fetch.keeper import Keeper
from fastpull.fuse_client.fetch.queue import FetchQueue, Lane, Limits, Want

CHAIN = Digest("ab" * 32)
OTHER = Digest("cd" * 32)
PATIENCE = 60.0


def contents(count: int, size: int = 5000, seed: int = 0) -> dict[ChunkId, bytes]:
    rng = random.Random(seed)
    made = [rng.randbytes(size // 2) * 2 for _ in range(count)]
    return {chunk_id(data): data for data in made}


@dataclass
class Bench:
    fetcher: Fetcher
    keeper: Keeper
    store: MemoryChunkStore
    queue: FetchQueue
    client: ProxyClient

    async def get(self, data: dict[ChunkId, bytes], chain: Digest = CHAIN) -> dict[ChunkId, bytes]:
        async with asyncio.timeout(PATIENCE):
            chunks, _ = await self.fetcher.get(chain, [Want(chunk, len(content)) for chunk, content in data.items()])
        return dict(chunks)


@contextlib.asynccontextmanager
async def bench(
    *urls: str,
    limits: Limits | None = None,
    retry_seconds: float = PATIENCE,
    read_seconds: float = 30.0,
    store: MemoryChunkStore | None = None,
) -> AsyncIterator[Bench]:
    settings = NodeSettings(proxies=urls, fetch=FetchSettings(request_timeout_seconds=read_seconds))
    store = store or MemoryChunkStore(quota_bytes=1 << 30)
    tasks = Tasks()
    with ThreadPoolExecutor(2) as threads:
        async with ProxyClient.open(settings) as client, Writer() as writer:
            counters = FetchCounters()
            keeper = Keeper(store, writer, tasks, counters)
            queue = FetchQueue(limits or Limits())
            fetcher = Fetcher(client, keeper, queue, tasks, threads, counters, retry_seconds=retry_seconds)
            client.transport.on_recovery.append(fetcher.wake)
            try:
                yield Bench(fetcher, keeper, store, queue, client)
            finally:
                fetcher.close()
                await tasks.aclose()
                await keeper.flush()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.005)


def flip(frames: list[bytes]) -> list[bytes]:
    return [frames[0][:-1] + bytes([frames[0][-1] ^ 1]), *frames[1:]]


FAULTS = [
    pytest.param([], id="none"),
    pytest.param([status(500)], id="500-once"),
    pytest.param([status(503), status(502), status(500)], id="5xx-three-times"),
    pytest.param([status(404)], id="404-once"),
    pytest.param([cut_after(0)], id="cut-before-the-first-frame"),
    pytest.param([cut_after(3)], id="cut-between-frames"),
    pytest.param([cut_after(3, 100), cut_after(2, 7)], id="cut-inside-a-frame-twice"),
    pytest.param([ends_early(4)], id="too-few-frames"),
    pytest.param([sends(flip)], id="one-bit-flipped"),
    pytest.param([sends(lambda frames: frames[::-1])], id="frames-in-the-wrong-order"),
    pytest.param([sends(lambda frames: [*frames, *frames])], id="too-many-frames"),
    pytest.param([sends(lambda frames: [MISSING_FRAME for _ in frames])], id="the-proxy-lacks-them-for-now"),
    pytest.param([sends(lambda frames: [HEADER.pack(7, 1, 1) + b"x"])], id="no-frames"),
    pytest.param([sends(lambda frames: [HEADER.pack(0, 1 << 31, 1 << 31)])], id="a-huge-frame"),
    pytest.param([sends(lambda frames: [HEADER.pack(1, 4, 1 << 20) + b"\0bad", *frames[1:]])], id="broken-zstd"),
]


@pytest.mark.parametrize("faults", FAULTS)
async def test_a_reader_gets_the_right_bytes_whatever_happens_on_the_way(faults) -> None:
    """Any fault that ends is retried, resumed with what is missing, and never seen."""
    data = contents(12)
    proxy = FakeProxy()
    proxy.add_chunks(data)
    proxy.faults.extend(faults)
    async with proxy.serving(), bench(proxy.url) as b:
        assert await b.get(data) == data
        await b.keeper.flush()
        assert {chunk: bytes(b.store.get(chunk).data) for chunk in data} == data


async def test_a_cut_answer_is_resumed_with_what_is_missing() -> None:
    """Nothing that arrived is asked for again."""
    data = contents(10)
    proxy = FakeProxy()
    proxy.add_chunks(data)
    proxy.faults.append(cut_after(6))
    async with proxy.serving(), bench(proxy.url) as b:
        assert await b.get(data) == data

    assert [len(wanted) for wanted in proxy.requests] == [10, 4]


async def test_a_stalled_proxy_is_left_for_another() -> None:
    """A proxy that accepts and never answers costs one timeout, not the read."""
    data = contents(3)
    first, second = FakeProxy(), FakeProxy()
    second.add_chunks(data)
    first.faults.extend([stalls()] * 3)
    async with first.serving(), second.serving(), bench(first.url, second.url, read_seconds=0.2) as b:
        assert await b.get(data) == data

    assert len(second.requests) == 1


async def test_the_next_proxy_serves_while_the_first_is_away() -> None:
    """A refused connection marks a proxy as down at once, and nobody tries it until it answers a probe."""
    data, more = contents(3), contents(3, seed=1)
    away, there = FakeProxy(), FakeProxy()
    there.add_chunks(data | more)
    async with away.serving():
        pass  # the port is known and nobody listens
    async with there.serving(), bench(away.url, there.url) as b:
        assert await b.get(data) == data
        assert [endpoint.is_up for endpoint in b.client.endpoints.all] == [False, True]
        assert await b.get(more) == more
        async with away.serving():
            await until(lambda: b.client.endpoints.all[0].is_up)


async def test_reads_wait_for_a_proxy_that_is_away_and_go_on_when_it_is_back() -> None:
    """Unreachable, then back: the read is only late."""
    data = contents(4)
    proxy = FakeProxy()
    proxy.add_chunks(data)
    async with proxy.serving():
        pass
    async with bench(proxy.url) as b:
        waiting = asyncio.get_running_loop().create_task(b.get(data))
        await until(lambda: not b.client.endpoints.any_up)
        async with proxy.serving():
            assert await waiting == data


async def test_a_read_fails_after_its_time_and_only_that_read() -> None:
    """When the retry time is over the reader gets an error that says why; what can be had is still given."""
    data, lost = contents(3), contents(1, seed=9)
    proxy = FakeProxy()
    proxy.add_chunks(data)
    async with proxy.serving(), bench(proxy.url, retry_seconds=0.5) as b:
        with pytest.raises(ChunkUnavailableError, match="the proxy does not have it"):
            await b.get(lost)
        assert await b.get(data) == data
        await until(lambda: len(b.queue) == 0)  # nobody waits for the lost chunk: it is not asked for any more
        assert b.fetcher.counters.failed_reads == 1


async def test_a_chunk_is_fetched_once_for_all_who_want_it() -> None:
    """Readers of two chains and a prefetch share one flight."""
    data = contents(5)
    wants = [Want(chunk, len(content)) for chunk, content in data.items()]
    proxy = FakeProxy()
    proxy.add_chunks(data)
    gate = asyncio.Event()
    proxy.faults.append(held(gate))
    async with proxy.serving(), bench(proxy.url) as b:
        await b.fetcher.prefetch(CHAIN, Lane.PLAN, wants)
        loop = asyncio.get_running_loop()
        readers = [loop.create_task(b.get(data, chain)) for chain in (CHAIN, OTHER, CHAIN)]
        await until(lambda: sum(flight.waiters for flight in b.queue.flights()) == 15)
        gate.set()
        assert await asyncio.gather(*readers) == [data] * 3

    assert set(proxy.asked.values()) == {1}


async def test_what_is_on_its_way_to_the_disk_is_not_fetched_again() -> None:
    """Between its arrival and its commit a chunk is served from memory."""
    data = contents(3)
    proxy = FakeProxy()
    proxy.add_chunks(data)

    class SlowStore(MemoryChunkStore):
        gate = asyncio.Event()

        def put_many(self, chunks):
            while not self.gate.is_set():
                pass
            return super().put_many(chunks)

    store = SlowStore(quota_bytes=1 << 30)
    async with proxy.serving(), bench(proxy.url, store=store) as b:
        assert await b.get(data) == data
        assert await b.get(data) == data
        store.gate.set()
        await b.keeper.flush()
        assert all(store.has(list(data)))
    assert set(proxy.asked.values()) == {1}


async def test_a_full_store_costs_the_cache_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    """Chunks that can not be kept are served; one line says when it begins and one when it ends."""

    class FullStore(MemoryChunkStore):
        full = True

        def put_many(self, chunks):
            if self.full:
                raise StoreFullError("no space left")
            return super().put_many(chunks)

    store = FullStore(quota_bytes=1 << 30)
    first, second, third = contents(4), contents(4, seed=1), contents(4, seed=2)
    proxy = FakeProxy()
    proxy.add_chunks(first | second | third)
    async with proxy.serving(), bench(proxy.url, store=store) as b:
        assert await b.get(first) == first
        await b.keeper.flush()
        assert await b.get(second) == second
        assert await b.get(first) == first  # from the small memory cache
        assert set(proxy.asked.values()) == {1}
        assert "full" in b.keeper.failure

        store.full = False
        b.keeper._paused_until = 0.0
        assert await b.get(third) == third
        await b.keeper.flush()
        assert (b.keeper.failure, all(store.has(list(third)))) == ("", True)

    told = [record.getMessage() for record in caplog.records if record.name.endswith("keeper")]
    assert len(told) == 2
    assert "served uncached" in told[0]
    assert "again" in told[1]


async def test_a_demand_waits_for_at_most_one_batch_of_prefetch() -> None:
    """A throttled proxy and a long plan: between the demand and its answer at most the batches that were
    under way are served, none that begins later.
    """
    plan, wanted = contents(120, size=10_000), contents(1, seed=5)
    proxy = FakeProxy(bytes_per_second=2e6)
    proxy.add_chunks(plan | wanted)
    limits = Limits(
        connections=3, prefetch_connections=2, batch_bytes=50_000, prefetch_batch_bytes=50_000, queue_bytes=1 << 20
    )
    async with proxy.serving(), bench(proxy.url, limits=limits) as b:
        loop = asyncio.get_running_loop()
        wants = [Want(chunk, len(data)) for chunk, data in plan.items()]
        ahead = loop.create_task(b.fetcher.prefetch(CHAIN, Lane.PLAN, wants))
        await until(lambda: len(proxy.requests) >= 4)
        under_way = len(b.queue.batches)
        before = len(proxy.requests)
        assert await b.get(wanted, OTHER) == wanted
        between = proxy.requests[before:]
        assert under_way <= 2
        position = next(at for at, chunks in enumerate(between) if set(chunks) & set(wanted))
        assert position <= under_way
        await ahead
        await b.fetcher.idle(CHAIN)
        await b.keeper.flush()
        assert all(b.store.has(list(plan)))


async def test_chains_share_the_connections() -> None:
    """Of two chains that prefetch, neither waits until the other is done."""
    one, two = contents(60, seed=1), contents(60, seed=2)
    proxy = FakeProxy(bytes_per_second=5e6)
    proxy.add_chunks(one | two)
    limits = Limits(
        connections=3, prefetch_connections=2, batch_bytes=25_000, prefetch_batch_bytes=25_000, queue_bytes=1 << 20
    )
    async with proxy.serving(), bench(proxy.url, limits=limits) as b:
        for chain, data in ((CHAIN, one), (OTHER, two)):
            await b.fetcher.prefetch(chain, Lane.PLAN, [Want(chunk, len(content)) for chunk, content in data.items()])
        await b.fetcher.idle(CHAIN)
        await b.fetcher.idle(OTHER)

    half = proxy.requests[: len(proxy.requests) // 2]
    shares = [sum(len(set(chunks) & set(data)) for chunks in half) for data in (one, two)]
    assert min(shares) > 0.7 * max(shares)


async def test_prefetch_is_bounded() -> None:
    """A plan of any length queues only what the limit allows; the rest waits with the one who has it."""
    plan = contents(100, size=10_000)
    proxy = FakeProxy()
    gate = asyncio.Event()
    proxy.faults.extend([held(gate)] * 100)
    proxy.add_chunks(plan)
    limits = Limits(
        connections=3, prefetch_connections=2, batch_bytes=20_000, prefetch_batch_bytes=20_000, queue_bytes=50_000
    )
    async with proxy.serving(), bench(proxy.url, limits=limits) as b:
        wants = [Want(chunk, len(data)) for chunk, data in plan.items()]
        ahead = asyncio.get_running_loop().create_task(b.fetcher.prefetch(CHAIN, Lane.PLAN, wants))
        await until(lambda: len(proxy.requests) == 2)
        assert len(b.queue) <= (50_000 + 2 * 20_000) // 10_000
        gate.set()
        await ahead
        await b.fetcher.idle(CHAIN)


async def test_a_reader_that_leaves_takes_only_its_own_wish_back() -> None:
    """Cancelling one of two readers of a chunk does not disturb the other."""
    data = contents(2)
    proxy = FakeProxy()
    proxy.add_chunks(data)
    gate = asyncio.Event()
    proxy.faults.append(held(gate))
    async with proxy.serving(), bench(proxy.url) as b:
        loop = asyncio.get_running_loop()
        leaving, staying = loop.create_task(b.get(data)), loop.create_task(b.get(data))
        await until(lambda: sum(flight.waiters for flight in b.queue.flights()) == 4)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        gate.set()
        assert await staying == data


def test_settings_reach_the_wire() -> None:
    """The defaults are what the scheduler is tested with."""
    settings = msgspec.structs.asdict(NodeSettings().fetch)
    assert (settings["connections"], settings["batch_bytes"]) == (Limits().connections, Limits().batch_bytes)
