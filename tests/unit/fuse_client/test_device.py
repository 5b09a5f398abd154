"""A chain's device: every byte as if it were one flat file."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpull.cache.codec import encode
from fastpull.cache.digest import ChunkId, Digest, chunk_id
from fastpull.cache.memory_store import MemoryChunkStore
from fastpull.cache.store import ChunkView, Encoding, Filling, StoredChunk
from fastpull.fuse_client.device import ChainDevice
from fastpull.fuse_client.errors import ChunkUnavailableError
from fastpull.fuse_client.fetch.queue import Want
from fastpull.fuse_client.fetch.waited import Waited
from fastpull.fuse_client.session.files import DeviceReadError
from fastpull.image.chunk_map import ChunkMap, pack

CHAIN = Digest("ab" * 32)
BLOCK = 4096


class Reference:
    """Chunks at their places, and the flat bytes that they mean."""

    def __init__(self, sizes: Sequence[int], seed: int = 0, tail: int = 0) -> None:
        rng = random.Random(seed)
        self.contents: dict[ChunkId, bytes] = {}
        placed: list[tuple[int, int, ChunkId]] = []
        flat = bytearray()
        for size in sizes:
            data = rng.randbytes(size)
            flat += bytes(-len(flat) % BLOCK)
            placed.append((len(flat), size, chunk_id(data)))
            self.contents[chunk_id(data)] = data
            flat += data
        flat += bytes(tail)
        self.placed = placed
        self.map = ChunkMap.open(pack(placed, len(flat)))
        self.flat = bytes(flat) + bytes(-len(flat) % BLOCK)

    def stored(self, chunks: Sequence[ChunkId]) -> list[tuple[ChunkId, StoredChunk]]:
        return [(c, StoredChunk(Encoding.RAW, len(self.contents[c]), self.contents[c])) for c in chunks]


class FakeFetcher:
    """Gives what it has; remembers what was asked."""

    def __init__(self, contents: Mapping[ChunkId, bytes]) -> None:
        self.contents = contents
        self.window_bytes = 1 << 30
        self.wanted: list[ChunkId] = []
        self.window: list[ChunkId] = []

    async def get(self, chain: Digest, wants: Sequence[Want], window: Any = ()) -> tuple[dict[ChunkId, bytes], Waited]:
        self.wanted += [want.chunk for want in wants]
        self.window += [want.chunk for want in window]
        await asyncio.sleep(0)
        for want in wants:
            if want.chunk not in self.contents:
                raise ChunkUnavailableError(want.chunk, 1.0, "planned")
        return {want.chunk: self.contents[want.chunk] for want in wants}, Waited(fetch=0.5)


class DiskStore(MemoryChunkStore):
    """As on a disk: memory to read into is dirty, and what is ``cold`` can be had by waiting only."""

    cold = False
    read_ahead_chunks = 0

    def view(self) -> AbstractContextManager[ChunkView]:
        with super().view() as view:
            return nullcontext(DiskView(self, view))

    def read_ahead(self, chunks: Sequence[ChunkId]) -> int:
        self.read_ahead_chunks += len(chunks)
        return len(chunks)


class DiskView:
    def __init__(self, store: DiskStore, view: ChunkView) -> None:
        self._store = store
        self._view = view
        self.find, self.get = view.find, view.get

    def fill(self, fillings: Sequence[Filling], *, wait: bool = True) -> bool:
        return False if self._store.cold and not wait else self._view.fill(fillings)

    def room(self, length: int) -> memoryview:
        return memoryview(bytearray(b"\xa5" * (length + 5)))


def device_of(
    reference: Reference, local: Sequence[ChunkId] = (), **options: Any
) -> tuple[ChainDevice, FakeFetcher, DiskStore]:
    store = DiskStore(quota_bytes=1 << 30)
    store.put_many(reference.stored(local))
    fetcher = FakeFetcher(reference.contents)

    async def drop(chunks: Sequence[ChunkId]) -> int:
        return store.drop(chunks)

    return ChainDevice(CHAIN, reference.map, store, fetcher, drop, **options), fetcher, store  # type: ignore[arg-type]


async def read(device: ChainDevice, offset: int, length: int) -> bytes:
    """As the session reads: at once if possible."""
    got: list[bytes] = []
    if device.try_read(offset, length, lambda buffers: got.append(b"".join(buffers))):
        assert len(got) == 1
        return got[0]
    assert not got
    return b"".join(await device.read(offset, length))


sizes = st.lists(st.one_of(st.integers(1, 200), st.integers(4000, 4200), st.integers(1, 20_000)), max_size=12)


@given(sizes=sizes, tail=st.integers(0, 9000), seed=st.integers(0, 9), data=st.data())
@settings(max_examples=150, deadline=None)
def test_any_range_reads_as_the_flat_file(sizes: list[int], tail: int, seed: int, data: st.DataObject) -> None:
    """Whatever is local and whatever is not, gaps and tail are zeros and the rest are the chunks."""
    reference = Reference(sizes, seed, tail)
    chunks = list(reference.contents)
    local = data.draw(st.lists(st.sampled_from(chunks), unique=True)) if chunks else []
    device, fetcher, _store = device_of(reference, local)
    assert device.size == len(reference.flat)

    async def check() -> None:
        for _ in range(4):
            if not device.size:
                return
            offset = data.draw(st.integers(0, device.size - 1))
            length = data.draw(st.integers(1, device.size - offset))
            assert await read(device, offset, length) == reference.flat[offset : offset + length]

    asyncio.run(check())
    assert not set(fetcher.wanted) & set(local), "what is local is never fetched"


async def test_what_is_local_is_answered_at_once() -> None:
    """A read whose chunks are all here asks nobody."""
    reference = Reference([5000] * 20)
    device, fetcher, _ = device_of(reference, list(reference.contents))

    assert await read(device, 0, device.size) == reference.flat
    assert (fetcher.wanted, device.misses, device.reads) == ([], 0, 1)


@pytest.mark.fault(
    "rot: a chunk in the node cache, under a reader",
    done="a byte flipped",
    promised="the reader gets the right bytes, later",
)
async def test_reads_of_a_slow_disk_do_not_stop_others() -> None:
    """What is in the node cache is never fetched, however long the disk takes."""
    reference = Reference([50_000] * 4)
    device, fetcher, store = device_of(reference, list(reference.contents))
    store.cold = True
    device._disk.took(1.0)

    assert not device.try_read(0, 150_000, lambda _: None)
    assert await read(device, 0, 150_000) == reference.flat[:150_000]
    assert fetcher.wanted == []
    assert device.misses == 0
    assert device.reads == 1


@pytest.mark.parametrize("waits", [False, True])
async def test_a_quick_disk_is_waited_for(waits: bool) -> None:
    reference = Reference([50_000] * 4)
    device, _fetcher, store = device_of(reference, list(reference.contents), waits_for_disk=waits)
    store.cold = True
    if waits:
        device._disk.took(1.0)
    got: list[bytes] = []

    assert device.try_read(4096, 4096, lambda buffers: got.append(b"".join(buffers)))
    assert got == [reference.flat[4096:8192]]


async def test_who_goes_on_after_a_wait_finds_it_read_ahead() -> None:
    reference = Reference([20_480] * 100)
    device, _fetcher, store = device_of(reference, list(reference.contents))
    store.cold = True
    for offset in range(0, 20 * 20_480, 20_480):
        assert await read(device, offset, 20_480) == reference.flat[offset : offset + 20_480]

    assert store.read_ahead_chunks >= 20


async def test_a_read_that_is_given_up_waits_for_its_thread() -> None:
    """Else the store could be closed under it."""
    reference = Reference([200_000])
    device, _fetcher, store = device_of(reference, list(reference.contents))
    store.cold = True
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def slow_view() -> AbstractContextManager[ChunkView]:
        begun.set()
        assert go_on.wait(30)
        ended.set()
        return DiskStore.view(store)

    store.view = slow_view  # type: ignore[method-assign]
    task = asyncio.get_running_loop().create_task(device.read(0, 200_000))
    assert await asyncio.to_thread(begun.wait, 30)
    task.cancel()
    asyncio.get_running_loop().call_later(0.05, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await task

    assert ended.is_set()


async def test_a_damaged_chunk_is_dropped_and_fetched_again() -> None:
    """Flipped bits in the node cache never reach a reader."""
    reference = Reference([5000] * 5)
    victim = list(reference.contents)[2]
    device, fetcher, store = device_of(reference, list(reference.contents))
    store.drop([victim])
    store.put_many([(victim, StoredChunk(Encoding.RAW, 5000, bytes(5000)))])

    assert await read(device, 0, device.size) == reference.flat
    assert (fetcher.wanted, device.damaged) == ([victim], 1)
    assert not any(store.has([victim])), "the fetcher stores the right one"


@pytest.mark.parametrize(("always", "seen"), [(False, True), (True, False)])
async def test_how_often_a_chunk_is_verified_is_a_setting(always: bool, seen: bool) -> None:
    """``once`` trusts what it verified since the start, ``always`` looks at every read."""
    reference = Reference([5000])
    (chunk,) = reference.contents
    device, _, store = device_of(reference, [chunk], verify_always=always)
    assert await read(device, 0, 4096) == reference.flat[:4096]
    store.drop([chunk])
    store.put_many([(chunk, StoredChunk(Encoding.RAW, 5000, b"x" * 5000))])

    assert (await read(device, 0, 4096) == b"x" * 4096) is seen


async def test_a_map_that_contradicts_a_chunk_is_an_error() -> None:
    """A wrong length in the chunk map never becomes shifted or made-up bytes."""
    reference = Reference([5000, 5000])
    placed = [(0, 4990, reference.placed[0][2]), *reference.placed[1:]]
    reference.map = ChunkMap.open(pack(placed, len(reference.flat)))
    device, _, _ = device_of(reference, [reference.placed[0][2]])

    with pytest.raises(DeviceReadError, match="chunk map"):
        await read(device, 0, 4096)
    assert await read(device, 8192, 4096) == reference.flat[8192:12288]


async def test_compressed_chunks_of_another_version_are_read_too() -> None:
    """The node stores raw; a store that holds something else is understood."""
    data = b"compressible " * 500
    reference = Reference([5000])
    reference.contents = {chunk_id(data): data}
    reference.map = ChunkMap.open(pack([(0, len(data), chunk_id(data))], len(data)))
    device, fetcher, store = device_of(reference)
    store.put_many([(chunk_id(data), encode(data))])

    assert await read(device, 0, 4096) == data[:4096]
    assert fetcher.wanted == []


async def test_a_chunk_that_can_not_be_had_fails_that_read_only() -> None:
    """The error of the fetcher becomes the read's error."""
    reference = Reference([5000, 5000, 5000])
    device, fetcher, _ = device_of(reference)
    lost = reference.placed[1][2]
    fetcher.contents = {chunk: data for chunk, data in reference.contents.items() if chunk != lost}

    with pytest.raises(DeviceReadError, match="could not be fetched"):
        await read(device, 0, device.size)
    assert await read(device, 0, 4096) == reference.flat[:4096]


async def test_a_miss_brings_absent_neighbours() -> None:
    """Mostly what stands behind it, nearest first, a little before it, and nothing that is here."""
    reference = Reference([4096] * 40)
    order = [chunk for _, _, chunk in reference.placed]
    device, fetcher, _ = device_of(reference, [order[22]], window_bytes=8 * 4096)

    await read(device, 20 * 4096, 4096)

    assert fetcher.wanted == [order[20]]
    assert fetcher.window == [*(order[n] for n in (21, 23, 24, 25, 26)), order[19], order[18]]


async def test_the_same_chunk_at_two_places_is_fetched_once() -> None:
    """Content that repeats needs one flight and one place in the store."""
    reference = Reference([5000])
    chunk = reference.placed[0][2]
    reference.map = ChunkMap.open(pack([(0, 5000, chunk), (8192, 5000, chunk)], 16384))
    device, fetcher, _ = device_of(reference)
    data = reference.contents[chunk].ljust(8192, b"\0")

    assert await read(device, 0, 16384) == data * 2
    assert set(fetcher.wanted) == {chunk}


class Notes:
    def __init__(self) -> None:
        self.touches: list[int] = []
        self.waits: list[tuple[int, int, Waited]] = []

    def touched(self, index: int) -> None:
        self.touches.append(index)

    def waited(self, offset: int, length: int, waited: Waited) -> None:
        self.waits.append((offset, length, waited))


async def test_first_touches_and_waits_are_observed_once() -> None:
    """Each chunk is reported at its first use, fetched or not; each wait with its range."""
    reference = Reference([4096] * 6)
    order = [chunk for _, _, chunk in reference.placed]
    device, _, _ = device_of(reference, order[:3], window_bytes=0)
    notes = device.observer = Notes()

    await read(device, 4096, 8192)
    await read(device, 4096, 4096)
    await read(device, 4 * 4096, 4096)
    await read(device, 0, 4096)

    assert notes.touches == [1, 2, 4, 0]
    assert [w for w in notes.waits if not w[2].disk] == [(4 * 4096, 4096, Waited(fetch=0.5))]


async def test_what_is_used_is_known_to_eviction() -> None:
    """Used since the last look, for the store's order; used at all, for what is evicted last."""
    reference = Reference([4096] * 4)
    order = [chunk for _, _, chunk in reference.placed]
    device, _, _ = device_of(reference, order)

    await read(device, 4096, 4096)

    assert device.take_used() == [order[1]]
    assert device.take_used() == []
    await read(device, 4096, 4096)
    assert device.take_used() == [order[1]]
    assert [device.needs(chunk) for chunk in order] == [False, True, False, False]
    assert device.needs(chunk_id(b"of another chain")) is False
    assert device.local() == (4, 4 * 4096)
