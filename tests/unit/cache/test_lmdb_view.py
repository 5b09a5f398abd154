"""Chunks' bytes, read to where they are wanted."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from conformance.stores import content, raw

from fastpull.cache.errors import ChunkCorruptError
from fastpull.cache.lmdb_store import LmdbChunkStore
from fastpull.cache.records import pack_entry, unpack_entry
from fastpull.cache.store import ChunkPlace, ChunkView, Filling

SIZE = 3000
COUNT = 1500  # neighbours: more than one call takes


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LmdbChunkStore]:
    opened = LmdbChunkStore.open(tmp_path, quota_bytes=64 << 20, durable=False)
    opened.put_many([raw(number, SIZE) for number in range(COUNT)])
    yield opened
    opened.close()


def place(view: ChunkView, number: int) -> ChunkPlace:
    found = view.find(raw(number, SIZE)[0])
    assert found is not None
    return found


def whole(view: ChunkView, numbers: Sequence[int], room: memoryview) -> list[Filling]:
    return [(place(view, n), 0, room[i * SIZE : (i + 1) * SIZE]) for i, n in enumerate(numbers)]


@pytest.mark.parametrize("order", ["as stored", "shuffled"])
def test_each_piece_of_memory_gets_its_chunk(store: LmdbChunkStore, order: str) -> None:
    numbers = list(range(COUNT))
    if order == "shuffled":
        random.Random(7).shuffle(numbers)
    with store.view() as view:
        room = view.room(COUNT * SIZE)

        assert view.fill(whole(view, numbers, room))
        assert bytes(room[: COUNT * SIZE]) == b"".join(content(number, SIZE) for number in numbers)


def test_a_part_of_a_chunk(store: LmdbChunkStore) -> None:
    buffer = bytearray(100)
    with store.view() as view:
        assert view.fill([(place(view, 5), 700, memoryview(buffer))])

    assert bytes(buffer) == content(5, SIZE)[700:800]


def test_nothing_to_fill_is_fine(store: LmdbChunkStore) -> None:
    with store.view() as view:
        assert view.fill([])
        assert view.fill([], wait=False)


def test_neighbours_on_disk_are_one_read(store: LmdbChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    preadv = os.preadv

    def counted(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        calls.append(len(buffers))
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", counted)
    with store.view() as view:
        room = view.room(21 * SIZE)
        view.fill(whole(view, [*range(10), *range(20, 31)], room))

    assert calls == [10, 11]


def test_reads_that_come_back_short_are_completed(store: LmdbChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv = os.preadv

    def short(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        return preadv(fd, [buffers[0][:1234]], offset, flags)

    monkeypatch.setattr(os, "preadv", short)
    with store.view() as view:
        room = view.room(9 * SIZE)
        assert view.fill(whole(view, range(9), room))

        assert bytes(room[: 9 * SIZE]) == b"".join(content(number, SIZE) for number in range(9))


@pytest.mark.parametrize("outcome", ["nothing", "a part"])
def test_what_only_the_disk_has_is_not_waited_for(
    store: LmdbChunkStore, monkeypatch: pytest.MonkeyPatch, outcome: str
) -> None:
    preadv = os.preadv

    def on_disk(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT and outcome == "nothing":
            raise BlockingIOError
        return preadv(fd, [buffers[0][:100]] if flags & os.RWF_NOWAIT else buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", on_disk)
    with store.view() as view:
        room = view.room(3 * SIZE)
        fillings = whole(view, range(3), room)

        assert not view.fill(fillings, wait=False)
        assert view.fill(fillings)
        assert bytes(room[: 3 * SIZE]) == b"".join(content(number, SIZE) for number in range(3))


def test_where_a_file_system_can_not_tell_reads_wait(store: LmdbChunkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked once, not at each read."""
    preadv = os.preadv
    asked: list[int] = []

    def unsupported(fd: int, buffers: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        if flags & os.RWF_NOWAIT:
            asked.append(offset)
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return preadv(fd, buffers, offset, flags)

    monkeypatch.setattr(os, "preadv", unsupported)
    with store.view() as view:
        room = view.room(3 * SIZE)
        for _ in range(3):
            assert view.fill(whole(view, range(3), room), wait=False)
            assert bytes(room[: 3 * SIZE]) == b"".join(content(number, SIZE) for number in range(3))

    assert len(asked) == 1


def test_a_segment_that_ends_too_early_is_an_error(store: LmdbChunkStore, tmp_path: Path) -> None:
    (segment,) = tmp_path.glob("*.chunks")
    os.truncate(segment, 10 * SIZE + 5)
    with store.view() as view:
        room = view.room(2 * SIZE)
        with pytest.raises(OSError, match="ends at"):
            view.fill(whole(view, [9, 10], room))
        with pytest.raises(ChunkCorruptError, match="ends before it"):
            view.get(raw(10, SIZE)[0])

        assert view.get(raw(9, SIZE)[0]) == raw(9, SIZE)[1]


def test_a_room_is_used_again_once_the_view_is_closed(store: LmdbChunkStore) -> None:
    with store.view() as view, store.view() as other:
        first, second = view.room(1000), other.room(1000)
        first[0:1], second[0:1] = b"1", b"2"
        assert bytes(first[0:1]) == b"1"

    with store.view() as view:
        assert bytes(view.room(10)[0:1]) in (b"1", b"2")
        assert len(view.room(100 << 20)) >= 100 << 20


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"length": 1 << 31}, id="a length that no chunk has"),
        pytest.param({"offset": 1 << 40}, id="behind the end"),
        pytest.param({"offset": (1 << 64) - 1}, id="an offset that no file has"),
        pytest.param({"segment": 77}, id="a segment that does not exist"),
    ],
)
def test_a_damaged_record_costs_its_chunk_and_no_memory(store: LmdbChunkStore, change: dict[str, int]) -> None:
    name = raw(3, SIZE)[0]
    with store._index.environment.begin(store._index.index, write=True) as transaction:
        entry = unpack_entry(name, transaction.get(name))
        assert entry is not None
        transaction.put(name, pack_entry(entry._replace(**change)))

    with store.view() as view:
        with pytest.raises(ChunkCorruptError):
            view.get(name)
        with pytest.raises((ChunkCorruptError, OSError)):
            room = view.room(2 * SIZE)
            view.fill(whole(view, [2, 3], room))
        assert view.get(raw(2, SIZE)[0]) == raw(2, SIZE)[1]
