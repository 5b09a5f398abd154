"""Scrubbing finds what is damaged, drops it, leaves alone what it can not know, and keeps its pace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, closing
from pathlib import Path

import lmdb
import msgspec
import pytest
from conformance.stores import content, packed, raw

from fastpull.cache.codec import decode
from fastpull.cache.errors import CacheError
from fastpull.cache.lmdb_store import LmdbChunkStore
from fastpull.cache.scrub import Damage, Pace, Scrub, ScrubRunningError, Scrubs, ScrubState, Step
from fastpull.cache.scrub_chunks import ChunksCheck
from fastpull.cache.scrub_tables import TableCheck
from fastpull.cache.tables import Database
from fastpull.cache.writer import Writer

MiB = 1 << 20


def flip(path: Path, needle: bytes) -> None:
    """Change one bit of where ``needle`` stands in the file."""
    data = bytearray(path.read_bytes())
    data[data.index(needle) + len(needle) // 2] ^= 4
    path.write_bytes(data)


class FakeCheck:
    """Checks numbers; those below ``damaged`` are."""

    kind = "numbers"

    def __init__(self, count: int, damaged: int = 0, *, breaks: bool = False, refuses: bool = False) -> None:
        self.count = count
        self.damaged = damaged
        self.breaks = breaks
        self.refuses = refuses
        self.dropped: list[str] = []

    def total(self) -> int:
        return self.count

    def steps(self) -> Iterator[Step]:
        for number in range(self.count):
            if self.breaks and number == self.count // 2:
                raise CacheError("the index is damaged")
            damaged = (Damage(str(number), f"{number} is damaged"),) if number < self.damaged else ()
            yield Step(10, 1, damaged)

    async def drop(self, damage: Damage) -> bool:
        if self.refuses:
            raise OSError("read-only file system")
        self.dropped.append(damage.key)
        return True


async def scrub(*checks: object) -> ScrubState:
    run = Scrub(checks)  # type: ignore[arg-type]
    await run.run()
    return run.state()


async def test_what_is_damaged_is_dropped_and_told() -> None:
    check = FakeCheck(10, damaged=2)
    state = await scrub(check)

    (kind,) = state.kinds
    assert (kind.total, kind.checked, kind.bytes, kind.damaged, kind.dropped) == (10, 10, 100, 2, 2)
    assert check.dropped == ["0", "1"]
    assert state.stage == "done"
    assert state.is_clean
    assert state.notes == ("numbers: 0 is damaged: dropped", "numbers: 1 is damaged: dropped")


@pytest.mark.parametrize("check", [FakeCheck(10, breaks=True), FakeCheck(10, 1, refuses=True)])
async def test_what_can_not_be_checked_or_dropped_is_said_and_the_rest_is_checked(check: FakeCheck) -> None:
    other = FakeCheck(3)
    other.kind = "others"
    state = await scrub(check, other)

    assert not state.is_clean
    assert "can not be dropped" in state.notes[0] or "not checked to the end" in state.notes[0]
    assert state.kinds[1].checked == 3


def test_the_pace_is_kept_and_lost_time_is_not_made_up_for() -> None:
    pace = Pace(100, now=0.0)
    assert pace.pause(50, now=0.0) == 0.5
    assert pace.pause(50, now=0.5) == 0.5
    assert pace.pause(50, now=100.0) == 0.0
    assert pace.pause(100, now=100.0) == 0.5, "one second of credit, not ninety-nine"
    assert Pace(0, now=0.0).pause(10**12, now=0.0) == 0.0


async def test_one_at_a_time_and_who_leaves_ends_it() -> None:
    """An abandoned scrub stops, and another may begin."""
    scrubs = Scrubs([FakeCheck(10**9)])
    async with aclosing(scrubs.states(1, every=0.01)) as states:
        assert (await anext(states)).stage == "running"
        with pytest.raises(ScrubRunningError):
            await anext(scrubs.states(0))
    async with aclosing(scrubs.states(1, every=0.01)) as states:
        assert (await anext(states)).stage == "running"


async def test_the_end_of_the_process_breaks_it_off() -> None:
    """At once, without a result, and none begins any more."""
    scrubs = Scrubs([FakeCheck(10**9)])
    seen = []
    async for state in scrubs.states(1, every=60.0):
        seen.append(state.stage)
        scrubs.stop()
    assert seen == ["running"]
    assert [state.stage async for state in scrubs.states(0)] == ["running"]


async def test_the_last_state_is_done() -> None:
    states = [state async for state in Scrubs([FakeCheck(5)]).states(0, every=0.01)]
    assert states[-1].stage == "done"
    assert states[-1].kinds[0].checked == 5


async def test_rotten_chunks_of_a_store_go_and_the_others_stay(tmp_path: Path) -> None:
    """Raw and compressed ones alike; ``put_many`` brings them back."""
    with closing(LmdbChunkStore.open(tmp_path, quota_bytes=64 * MiB)) as store:
        chunks = [packed(number, 9000) if number % 2 else raw(number, 9000) for number in range(40)]
        store.put_many(chunks)
        segment = next(tmp_path.glob("*.chunks"))
        for _, stored in chunks[3:5]:
            flip(segment, bytes(stored.data))
        async with Writer() as writer:
            state = await scrub(ChunksCheck(store, lambda ids: writer.run(store.drop, ids)))

        (kind,) = state.kinds
        assert (kind.checked, kind.damaged, kind.dropped) == (40, 2, 2)
        assert store.has([name for name, _ in chunks]) == [number not in (3, 4) for number in range(40)]
        store.put_many(chunks)
        assert all(decode(store.get(name), name) == content(n, 9000) for n, (name, _) in enumerate(chunks))


async def test_a_chunk_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    with closing(LmdbChunkStore.open(tmp_path, quota_bytes=64 * MiB)) as store:
        name, stored = raw(1, 5000)
        store.put_many([(name, stored)])
        with store._index.environment.begin(write=True) as transaction:
            entry = transaction.get(name, db=store._index.index)
            assert entry is not None
            transaction.put(name, b"\x02" + entry[1:], db=store._index.index)
        state = await scrub(ChunksCheck(store, lambda _: pytest.fail("dropped")))

        assert (state.kinds[0].damaged, state.kinds[0].unchecked) == (0, 1)
        assert store.has([name]) == [True]
        assert not state.is_clean


class Point(msgspec.Struct):
    x: int


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    with closing(Database.open(tmp_path, tables=["points"], map_bytes=MiB)) as opened:
        yield opened


def change(database: Database, key: bytes, data: bytes) -> None:
    environment: lmdb.Environment = database._environment
    with environment.begin(write=True) as transaction:
        transaction.put(key, data, db=database._databases["points"])


async def test_rotten_records_go_and_those_of_another_version_stay(database: Database) -> None:
    """A value of a newer layout, or with fields of a type that we do not know, is not rot: its checksum says so."""
    table = database.table("points", Point)
    for key in "abcd":
        table.put(key, Point(1))
    change(database, b"a", b"\x01rubbish that has no checksum")
    change(database, b"b", b"\x02of a newer layout")
    database.table("points", dict).put("c", {"x": "text"})
    async with Writer() as writer:
        state = await scrub(TableCheck("points", database, table, writer))

    assert (state.kinds[0].damaged, state.kinds[0].dropped, state.kinds[0].unchecked) == (1, 1, 2)
    assert [table.has(key) for key in "abcd"] == [False, True, True, True]


async def test_a_record_that_is_right_again_is_not_dropped(database: Database) -> None:
    """Somebody has put it meanwhile."""
    table = database.table("points", Point)
    table.put("a", Point(1))
    async with Writer() as writer:
        check = TableCheck("points", database, table, writer)
        assert await check.drop(Damage("a", "it was damaged"))
    assert table.get("a") == Point(1)


async def test_readers_go_on_meanwhile() -> None:
    """The work is done in threads, a step at a time."""
    ticks = 0
    async with aclosing(Scrubs([FakeCheck(200)]).states(0, every=0.001)) as states:
        async for _ in states:
            await asyncio.sleep(0)
            ticks += 1
    assert ticks > 1
