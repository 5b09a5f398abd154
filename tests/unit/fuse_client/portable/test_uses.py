"""What a child reads by itself is reported: in order, in batches, and not lost while nobody listens."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from fastpull.cache.digest import Digest, chunk_id
from fastpull.cache.memory_store import MemoryChunkStore
from fastpull.cache.store import Encoding, StoredChunk
from fastpull.fuse_client.device import ChainDevice
from fastpull.fuse_client.portable import frames
from fastpull.fuse_client.portable.uses import UseReporter
from fastpull.image.chunk_map import ChunkMap, pack

COUNT = 50
CONTENTS = [b"%04d" % n * 1024 for n in range(COUNT)]


class FakeLink:
    def __init__(self) -> None:
        self.is_up = True
        self.told: list[tuple[list[int], int]] = []

    def report(self, chunks: Sequence[int], reads: int) -> bool:
        assert len(chunks) <= frames.MAX_USED
        if self.is_up:
            self.told.append((list(chunks), reads))
        return self.is_up


def device() -> ChainDevice:
    """All of it local."""
    store = MemoryChunkStore(quota_bytes=1 << 30)
    store.put_many([(chunk_id(data), StoredChunk(Encoding.RAW, len(data), data)) for data in CONTENTS])
    chunk_map = ChunkMap.open(pack([(4096 * n, 4096, chunk_id(data)) for n, data in enumerate(CONTENTS)], 4096 * COUNT))
    return ChainDevice(Digest("ab" * 32), chunk_map, store, None, None)  # type: ignore[arg-type]


def read(of: ChainDevice, *indexes: int) -> None:
    for index in indexes:
        assert of.try_read(4096 * index, 4096, lambda _buffers: None)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def test_first_touches_are_told_soon_and_once() -> None:
    """In the order of the reads, with how many there were."""
    link = FakeLink()
    reporter = UseReporter(link)  # type: ignore[arg-type]
    local = device()
    reporter.watch(local)
    read(local, 7, 3, 7, 30)
    await until(lambda: link.told)
    assert link.told == [([7, 3, 30], 4)]
    read(local, 7, 3)
    reporter.report_all()
    assert sorted(link.told[1][0]) == [3, 7, 30], "in use, for what is evicted last"
    assert link.told[1][1] == 2


async def test_what_nobody_heard_is_told_later() -> None:
    link = FakeLink()
    link.is_up = False
    reporter = UseReporter(link)  # type: ignore[arg-type]
    local = device()
    reporter.watch(local)
    read(local, 1, 2)
    reporter.report_all()
    assert link.told == []
    link.is_up = True
    read(local, 5)
    await until(lambda: link.told)
    told = link.told[0][0]
    assert set(told) == {1, 2, 5}
    assert link.told[0][1] == 3


async def test_a_new_trace_hears_of_all_again() -> None:
    """A container starts where somebody looked before."""
    link = FakeLink()
    reporter = UseReporter(link)  # type: ignore[arg-type]
    local = device()
    reporter.watch(local)
    read(local, 1)
    await until(lambda: len(link.told) == 1)
    reporter.forget()
    read(local, 1)
    await until(lambda: len(link.told) == 2)
    assert link.told[1] == ([1], 1)


async def test_a_new_store_counts_from_nothing() -> None:
    """The device is another one then."""
    link = FakeLink()
    reporter = UseReporter(link)  # type: ignore[arg-type]
    first, second = device(), device()
    reporter.watch(first)
    read(first, 1, 1, 1)
    await until(lambda: link.told)
    reporter.watch(second)
    read(second, 2)
    await until(lambda: len(link.told) == 2)
    assert link.told[1] == ([2], 1)


async def test_large_reports_come_in_parts() -> None:
    link = FakeLink()
    reporter = UseReporter(link)  # type: ignore[arg-type]
    reporter._touched.extend(range(frames.MAX_USED + 5))
    reporter.touched(1)
    await until(lambda: len(link.told) == 2)
    assert [len(chunks) for chunks, _ in link.told] == [frames.MAX_USED, 6]
