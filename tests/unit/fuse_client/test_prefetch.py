"""Prefetch: what a plan makes the node fetch, whatever the plan says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpull.cache.digest import ChunkId, Digest, chunk_id
from fastpull.cache.memory_store import MemoryChunkStore
from fastpull.cache.store import Encoding, StoredChunk
from fastpull.cache.tasks import Tasks
from fastpull.cache.wire import Plan
from fastpull.config.node import PrefetchSettings
from fastpull.config.units import ByteSize
from fastpull.fuse_client.errors import ProxyUnreachableError
from fastpull.fuse_client.fetch.queue import Lane, Want
from fastpull.fuse_client.prefetch import Prefetcher, plan_indexes
from fastpull.image.chunk_map import ChunkMap, pack

CHAIN = Digest("ab" * 32)
DATA = {chunk_id(bytes([n]) * 100): bytes([n]) * 100 for n in range(20)}
IDS = list(DATA)
MAP = ChunkMap.open(pack([(n * 4096, 100, chunk) for n, chunk in enumerate(IDS)], 20 * 4096))


@given(st.lists(st.one_of(st.sampled_from([c.hex() for c in IDS]), st.text(max_size=70), st.just("00" * 32))))
def test_a_plan_is_only_what_the_chain_holds(chunks: list[str]) -> None:
    """Unknown, malformed and repeated entries of a plan, stale or hostile, are left out; the order stays."""
    order = plan_indexes(Plan(chain_id=str(CHAIN), chunks=tuple(chunks)), MAP)

    known = [chunk.hex() for chunk in IDS]
    assert [known[index] for index in order] == list(dict.fromkeys(c for c in chunks if c in known))


class FakeClient:
    def __init__(self, *answers: Plan | Exception | None) -> None:
        self.answers = list(answers)

    async def plan(self, _chain: Digest) -> Plan | None:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class FakeFetcher:
    def __init__(self) -> None:
        self.got: list[tuple[Lane, list[ChunkId]]] = []
        self.released: list[Digest] = []
        self.warmed: list[int] = []
        self.read: list[ChunkId] = []
        self.in_memory = True
        self.gate = asyncio.Event()
        self.gate.set()

    async def prefetch(self, _chain: Digest, lane: Lane, wants: Sequence[Want]) -> None:
        await self.gate.wait()
        self.got.append((lane, [want.chunk for want in wants]))

    async def idle(self, _chain: Digest) -> None:
        assert self.got, "warmed only when it is here"

    def read_ahead(self, chunks: Sequence[ChunkId]) -> int:
        self.read += chunks
        return 0 if self.in_memory else 100 * len(chunks)

    def release(self, chain: Digest) -> None:
        self.released.append(chain)


def prefetcher(
    client: FakeClient, fetcher: FakeFetcher, tasks: Tasks, local: Sequence[ChunkId] = (), **settings: object
) -> Prefetcher:
    store = MemoryChunkStore(quota_bytes=1 << 30)
    store.read_ahead = fetcher.read_ahead  # type: ignore[method-assign]
    store.put_many([(chunk, StoredChunk(Encoding.RAW, 100, DATA[chunk])) for chunk in local])

    async def warm(_device: object, order: Sequence[int]) -> None:
        fetcher.warmed += order

    return Prefetcher(
        client, fetcher, store, PrefetchSettings(**settings), tasks, warm=warm, memory_allows=lambda: True
    )  # type: ignore[arg-type]


def device() -> SimpleNamespace:
    return SimpleNamespace(chain=CHAIN, map=MAP, window_bytes=1000)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


def plan(*numbers: int) -> Plan:
    return Plan(chain_id=str(CHAIN), chunks=tuple(IDS[n].hex() for n in numbers), starts=3)


async def test_the_plan_is_fetched_in_its_order_without_what_is_here() -> None:
    """And the window around misses shrinks: the plan knows better."""
    tasks, fetcher, of = Tasks(), FakeFetcher(), device()
    fetching = prefetcher(FakeClient(plan(7, 3, 9, 1)), fetcher, tasks, local=[IDS[9]])
    fetching.start(of)
    await until(lambda: not len(tasks))

    assert fetcher.got == [(Lane.PLAN, [IDS[7], IDS[3], IDS[1]])]
    assert (of.window_bytes, fetching.planned) == (250, {CHAIN: 4})


async def test_the_page_cache_is_warmed_when_the_plan_is_here() -> None:
    """Where it is wanted, along the plan, also what was here before."""
    tasks, fetcher = Tasks(), FakeFetcher()
    prefetcher(FakeClient(plan(7, 3)), fetcher, tasks, local=[IDS[7]], warm_page_cache=True).start(device())  # type: ignore[arg-type]
    await until(lambda: not len(tasks))

    assert fetcher.warmed == [7, 3]


async def test_a_first_start_reads_ahead_and_stays_traceable() -> None:
    """What is here comes from the disk in time; the mount's own pages are left to the start that is being traced."""
    tasks, fetcher, of = Tasks(), FakeFetcher(), device()
    fetcher.in_memory = False
    prefetcher(FakeClient(plan(7, 3)), fetcher, tasks, local=IDS).start(of)
    await until(lambda: not len(tasks))

    assert (fetcher.read, fetcher.warmed) == ([IDS[7], IDS[3]], [])


@pytest.mark.parametrize("in_memory", [False, True], ids=["cold", "in memory"])
async def test_a_later_start_finds_the_pages_of_the_mount(monkeypatch: pytest.MonkeyPatch, *, in_memory: bool) -> None:
    """Along the plan as it was, without a question; where all is in memory still, nothing is done for it."""
    monkeypatch.setattr("fastpull.fuse_client.prefetch.TOGETHER_SECONDS", 0.0)
    tasks, fetcher, of = Tasks(), FakeFetcher(), device()
    fetching = prefetcher(FakeClient(plan(7, 3)), fetcher, tasks, local=IDS)
    fetching.start(of)
    await until(lambda: not len(tasks))
    fetcher.read.clear()

    fetcher.in_memory = in_memory
    fetching.start(of)
    await until(lambda: not len(tasks))

    assert (fetcher.read, fetcher.warmed) == ([IDS[7], IDS[3]], [] if in_memory else [7, 3])
    assert of.window_bytes == 250, "made smaller once"


async def test_containers_that_start_together_are_one_start() -> None:
    """The disk is asked once for all of them."""
    tasks, fetcher, of = Tasks(), FakeFetcher(), device()
    fetcher.in_memory = False
    fetching = prefetcher(FakeClient(plan(7, 3)), fetcher, tasks, local=IDS)
    for _ in range(3):
        fetching.start(of)
        await until(lambda: not len(tasks))

    assert (fetcher.read, fetcher.warmed) == ([IDS[7], IDS[3]], [])


async def test_a_start_learns_what_an_earlier_one_taught() -> None:
    """Without a plan at the first start, the next one asks again."""
    tasks, fetcher, of = Tasks(), FakeFetcher(), device()
    fetching = prefetcher(FakeClient(None, plan(4)), fetcher, tasks)
    for _ in range(2):
        fetching.start(of)
        await until(lambda: not len(tasks))

    assert fetcher.got == [(Lane.PLAN, [IDS[4]])]


async def test_a_restart_reads_nothing_ahead() -> None:
    """Containers run, whatever is in memory; only what was not fetched yet is."""
    tasks, fetcher, of = Tasks(), FakeFetcher(), device()
    fetcher.in_memory = False
    prefetcher(FakeClient(plan(7, 3)), fetcher, tasks, local=[IDS[7]]).resume(of)
    await until(lambda: not len(tasks))

    assert (fetcher.got, fetcher.read, fetcher.warmed) == ([(Lane.PLAN, [IDS[3]])], [], [])


async def test_backfill_follows_the_plan() -> None:
    """The rest of the image, in device order, when it is wanted."""
    tasks, fetcher = Tasks(), FakeFetcher()
    rate = ByteSize(10_000_000)
    prefetcher(FakeClient(plan(2)), fetcher, tasks, backfill=True, max_bytes_per_second=rate).start(device())  # type: ignore[arg-type]
    await until(lambda: not len(tasks))

    assert fetcher.got == [(Lane.PLAN, [IDS[2]]), (Lane.BACKFILL, IDS)]


@pytest.mark.parametrize("answer", [None, Plan(chain_id=str(CHAIN))], ids=["none", "empty"])
async def test_without_a_plan_nothing_is_fetched_ahead(answer: Plan | None) -> None:
    """A chain that nobody has started yet is fetched as it is read."""
    tasks, fetcher, of = Tasks(), FakeFetcher(), device()
    prefetcher(FakeClient(answer), fetcher, tasks).start(of)
    await until(lambda: not len(tasks))

    assert (fetcher.got, of.window_bytes) == ([], 1000)


async def test_a_proxy_that_is_away_is_asked_again() -> None:
    """The plan comes late rather than never."""
    tasks, fetcher = Tasks(), FakeFetcher()
    client = FakeClient(ProxyUnreachableError(["http://p"], "planned"), plan(4))
    prefetcher(client, fetcher, tasks).start(device())  # type: ignore[arg-type]
    await until(lambda: not len(tasks))

    assert fetcher.got == [(Lane.PLAN, [IDS[4]])]


async def test_an_unmount_ends_the_prefetch() -> None:
    """What is queued is given back."""
    tasks, fetcher = Tasks(), FakeFetcher()
    fetcher.gate.clear()
    fetching = prefetcher(FakeClient(plan(1, 2)), fetcher, tasks)
    fetching.start(device())  # type: ignore[arg-type]
    await until(lambda: CHAIN in fetching.planned)
    fetching.stop(CHAIN)
    await until(lambda: not len(tasks))

    assert (fetcher.got, fetcher.released, fetching.planned) == ([], [CHAIN], {})


async def test_switched_off_it_asks_for_nothing() -> None:
    """``prefetch.enabled = false``."""
    tasks = Tasks()
    prefetcher(FakeClient(), FakeFetcher(), tasks, enabled=False).start(device())  # type: ignore[arg-type]
    assert len(tasks) == 0
