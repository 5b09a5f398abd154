"""What every chunk store keeps."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conformance.stores import KINDS, Clock, content, make_store, packed, raw

from fastpull.cache.codec import decode
from fastpull.cache.digest import ChunkId
from fastpull.cache.errors import ChunkMissingError, StoreFullError
from fastpull.cache.store import ChunkStore, Encoding, StoredChunk

QUOTA = 100_000
KEPT_OPEN = [kind for kind in KINDS if kind != "disk-reopened"]
ABSENT = ChunkId(bytes(32))


def nothing(_chunk: ChunkId) -> bool:
    return False


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[ChunkStore]:
    opened = make_store(request.param, tmp_path / "store", QUOTA, clock)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    "chunk",
    [
        pytest.param(raw(1), id="raw"),
        pytest.param(packed(2), id="zstd"),
        pytest.param(raw(3, 1), id="one-byte"),
        pytest.param(raw(4, 0), id="empty"),
        pytest.param(raw(5, 70_000), id="large"),
    ],
)
def test_a_chunk_comes_back_as_it_was_put(store: ChunkStore, chunk: tuple[ChunkId, StoredChunk]) -> None:
    """Encoding, size and bytes, by every way to read it, also between neighbours."""
    name, stored = chunk
    store.put_many([raw(10), chunk, raw(11)])

    assert stored == store.get(name)
    assert store.has([name, ABSENT]) == [True, False]
    with store.view() as view:
        found = view.get(name)
        assert found is not None
        assert (stored.encoding, stored.size, bytes(stored.data)) == (found.encoding, found.size, bytes(found.data))
        assert found.encoding is stored.encoding
        del found


def test_what_is_not_there_is_said_to_be_missing(store: ChunkStore) -> None:
    """``get`` raises, a view gives None, dropping and touching it is fine."""
    with pytest.raises(ChunkMissingError):
        store.get(ABSENT)
    with store.view() as view:
        assert view.get(ABSENT) is None
    store.touch([ABSENT])
    store.flush()

    assert store.drop([ABSENT]) == 0
    assert list(store.ids()) == []


def test_memoryviews_are_taken_as_well_as_bytes(store: ChunkStore) -> None:
    """What is put may be a slice of a buffer that changes afterwards."""
    name, stored = raw(1)
    buffer = bytearray(stored.data)
    store.put_many([(name, StoredChunk(Encoding.RAW, stored.size, memoryview(buffer)))])
    buffer[:] = bytes(len(buffer))

    assert stored.data == store.get(name).data


def test_a_chunk_counts_once(store: ChunkStore) -> None:
    """Putting what is there adds nothing; the sums follow what is put and dropped."""
    first = store.put_many([raw(1), raw(2), raw(1)])
    again = store.put_many([raw(2), raw(3)])

    stats = store.stats()
    assert (3, first + again) == (stats.chunks, stats.live_bytes)
    assert first == 2 * again
    assert stats.quota_bytes == QUOTA
    assert stats.file_bytes > 0
    assert again == store.drop([raw(1)[0], ABSENT])
    assert (2, first) == (store.stats().chunks, store.stats().live_bytes)


@pytest.mark.parametrize("store", KEPT_OPEN, indirect=True)
def test_a_view_does_not_change(store: ChunkStore) -> None:
    """What is dropped or evicted meanwhile stays readable in it, what is put does not show."""
    chunks = [raw(number, 9000) for number in range(6)]
    store.put_many(chunks)
    with store.view() as looking:
        store.drop([chunks[1][0]])
        store.evict(0, in_use=nothing)
        store.put_many([raw(7)])
        store.flush()

        for number, (name, _) in enumerate(chunks):
            found = looking.get(name)
            assert found is not None
            assert content(number, 9000) == bytes(found.data)
            del found
        assert looking.get(raw(7)[0]) is None
    assert store.has([name for name, _ in chunks]) == [False] * 6


def test_the_least_recently_used_goes_first(store: ChunkStore, clock: Clock) -> None:
    """In the order of use, where a put of what is there is a use as well."""
    names = []
    for number in range(5):
        names.append(raw(number)[0])
        store.put_many([raw(number)])
        clock.advance(100)
    store.touch([names[0]])
    store.flush()
    clock.advance(100)
    store.put_many([raw(1)])
    one = store.stats().live_bytes // 5

    freed = store.evict(3 * one, in_use=nothing)

    assert freed == 2 * one
    assert store.has(names) == [True, True, False, False, True]


def test_chunks_of_one_moment_go_in_the_order_of_their_put(store: ChunkStore) -> None:
    """Also within a batch: what was put first is the older one."""
    names = [raw(number)[0] for number in range(6)]
    store.put_many([raw(number) for number in range(6)])

    store.evict(store.stats().live_bytes // 2, in_use=nothing)

    assert store.has(names) == [False] * 3 + [True] * 3


def test_what_is_in_use_goes_last(store: ChunkStore) -> None:
    """Even where it is the oldest; but it does go when nothing else is left."""
    names = [raw(number)[0] for number in range(6)]
    store.put_many([raw(number) for number in range(6)])
    in_use = set(names[:4])
    one = store.stats().live_bytes // 6

    store.evict(4 * one, in_use=in_use.__contains__)
    assert store.has(names) == [True] * 4 + [False] * 2

    store.evict(one, in_use=in_use.__contains__)
    assert store.stats().live_bytes == one


def test_evicting_to_nothing_leaves_nothing(store: ChunkStore) -> None:
    """And a store that is below the target is left alone."""
    added = store.put_many([raw(number) for number in range(8)])

    assert store.evict(added, in_use=nothing) == 0
    assert added == store.evict(0, in_use=nothing)
    assert (store.stats().chunks, store.stats().live_bytes) == (0, 0)
    assert list(store.ids()) == []


def test_a_full_store_makes_room_by_itself(store: ChunkStore) -> None:
    """It stays within its quota, keeps the newest, and never evicts what is being put."""
    for number in range(0, 60, 6):
        batch = [raw(number + part) for part in range(6)]
        store.put_many(batch)

        assert all(store.has([name for name, _ in batch]))
        assert store.stats().live_bytes <= QUOTA
    assert store.stats().live_bytes > QUOTA // 2


def test_a_full_store_takes_what_is_protected_last(store: ChunkStore) -> None:
    """Chunks that a caller protects stay while others can go."""
    kept = [raw(number)[0] for number in range(4)]
    store.protect(set(kept).__contains__)
    for number in range(40):
        store.put_many([raw(number)])

    assert all(store.has(kept))


def test_known_chunks_of_a_batch_are_not_evicted_for_it(store: ChunkStore, clock: Clock) -> None:
    """A batch is there as a whole afterwards, also the part that was there before."""
    store.put_many([raw(0)])
    for number in range(1, 18):
        clock.advance(1)
        store.put_many([raw(number)])
    batch = [raw(0), *(raw(number) for number in range(100, 110))]

    store.put_many(batch)

    assert all(store.has([name for name, _ in batch]))


def test_a_batch_larger_than_the_quota_is_refused(store: ChunkStore) -> None:
    """Nothing of it is kept, and nothing else is lost for it."""
    store.put_many([raw(1)])

    with pytest.raises(StoreFullError):
        store.put_many([raw(number) for number in range(2, 30)])

    assert [raw(1)[0]] == list(store.ids())
    assert store.put_many([raw(2)]) > 0


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_ids_names_every_chunk_once(kind: str, tmp_path: Path, clock: Clock) -> None:
    """Also when there are many, and while others are dropped."""
    store = make_store(kind, tmp_path, 10 << 20, clock)
    names = {raw(number, 20)[0] for number in range(9000)}
    store.put_many(raw(number, 20) for number in range(9000))

    seen = []
    for count, name in enumerate(store.ids()):
        seen.append(name)
        if count == 10:
            store.drop([max(names)])

    assert len(seen) == len(set(seen))
    assert names - set(seen) <= {max(names)}
    store.close()


def read_at_random(store: ChunkStore, done: threading.Event) -> None:
    chosen = random.Random(threading.get_ident())
    while not done.is_set():
        wanted = [packed(chosen.randrange(30))[0] for _ in range(4)]
        with store.view() as view:
            for name in wanted:
                found = view.get(name)
                if found is not None:
                    decode(found, name)
                del found
        store.touch(wanted)


def write_at_random(store: ChunkStore, seed: int) -> None:
    chosen = random.Random(seed)
    for _ in range(25):
        store.put_many([packed(chosen.randrange(30)) for _ in range(5)])
        store.drop([packed(chosen.randrange(30))[0]])
        store.evict(QUOTA // 2, in_use=nothing)


@pytest.mark.parametrize("store", KEPT_OPEN, indirect=True)
def test_threads_share_a_store(store: ChunkStore) -> None:
    """Readers see whole chunks or none while others put, drop and evict."""
    done = threading.Event()
    with ThreadPoolExecutor(4) as threads:
        readers = [threads.submit(read_at_random, store, done) for _ in range(2)]
        writers = [threads.submit(write_at_random, store, seed) for seed in range(2)]
        try:
            for writer in writers:
                writer.result()
        finally:
            done.set()
        for reader in readers:
            reader.result()


def test_calls_without_effect_do_no_harm(store: ChunkStore) -> None:
    """Empty batches, and flushing, syncing and releasing at any time."""
    for _ in range(2):
        assert store.put_many([]) == 0
        assert store.drop([]) == 0
        store.touch([])
        store.flush()
        store.sync()
        store.release_resident()
        assert store.read_ahead([]) == 0
        assert store.read_ahead([packed(2)[0]]) == 0
        store.put_many([packed(1)])

    assert content(1) == decode(store.get(packed(1)[0]), packed(1)[0])
