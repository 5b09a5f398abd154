"""Traces: what is recorded, when a start is over, and how a trace reaches the proxy."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from fastpull.cache.digest import Digest, chunk_id
from fastpull.cache.tasks import Tasks
from fastpull.cache.wire import Trace
from fastpull.fuse_client import trace_spool
from fastpull.fuse_client.errors import ProxyAnswerError, ProxyUnreachableError
from fastpull.fuse_client.fetch.queue import Lane
from fastpull.fuse_client.fetch.waited import Waited
from fastpull.fuse_client.start_record import StartFiles, Wait
from fastpull.fuse_client.trace import MIN_BYTES, Recorder
from fastpull.fuse_client.trace_spool import TraceSpool
from fastpull.image.chunk_map import ChunkMap, pack

CHAIN = "sha256:" + "ab" * 32
SIZE = MIN_BYTES // 2
IDS = [chunk_id(bytes([n])) for n in range(8)]
MAP = ChunkMap.open(pack([(n * SIZE, SIZE, chunk) for n, chunk in enumerate(IDS)], 8 * SIZE))


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def recorder(clock: Clock) -> Recorder:
    return Recorder(CHAIN, MAP, clock)


def test_a_trace_is_the_order_of_first_needs(recorder: Recorder, clock: Clock) -> None:
    """Chunk ids in the order of their first touch, with the milliseconds since the mount."""
    for at, index in ((101.5, 3), (101.75, 0), (104.0, 7)):
        clock.now = at
        recorder.touched(index)

    trace = recorder.finish("settled", node="n1")

    assert trace is not None
    assert trace.chunks == tuple(IDS[n].hex() for n in (3, 0, 7))
    assert trace.at_ms == (1500, 1750, 4000)
    assert (trace.chain_id, trace.node, trace.seconds, trace.ended_by) == (CHAIN, "n1", 4.0, "settled")


def test_a_chunk_at_two_places_is_needed_once(clock: Clock) -> None:
    """Plans are about chunks, not about places."""
    twice = ChunkMap.open(pack([(0, 10, IDS[0]), (4096, 10, IDS[0])], 8192))
    recorder = Recorder(CHAIN, twice, clock)
    recorder.touched(1)
    clock.now += 1
    recorder.touched(0)

    trace = recorder.finish("limit", node="")

    assert trace is not None
    assert (trace.chunks, trace.at_ms) == ((IDS[0].hex(),), (0,))


def test_a_start_is_over_when_nothing_new_is_touched(recorder: Recorder, clock: Clock) -> None:
    """Settled some seconds after the last first touch, or at the time limit, counted from the first one."""

    def verdict() -> str | None:
        return recorder.verdict(settle_seconds=10, max_seconds=60)

    clock.now = 500.0
    assert verdict() is None, "an image that nobody has started yet is not a start"
    recorder.touched(0)
    clock.now = 511.0
    assert verdict() is None, "a look at one small file is not a start"
    recorder.touched(1)
    clock.now = 520.9
    assert verdict() is None
    clock.now = 521.0
    assert verdict() == "settled"
    clock.now = 560.0
    assert verdict() == "limit"


def test_nothing_touched_is_no_trace(recorder: Recorder) -> None:
    """An image that was pulled and removed teaches nothing."""
    assert recorder.finish("unmount", node="") is None


def test_waits_say_how_long_and_why(recorder: Recorder, clock: Clock) -> None:
    """By cause; the begin is counted back from the end. A read out of memory has not waited for the disk."""
    clock.now = 103.0
    recorder.waited(4096, 8192, Waited(queue=0.1, fetch=0.7, inflate=0.2))
    recorder.waited(0, 1, Waited(disk=0.00001))
    recorder.waited(0, 1, Waited(disk=0.5))

    assert recorder.waits == [
        Wait(4096, 8192, 2_000_000, 100_000, 700_000, 200_000, 0),
        Wait(0, 1, 2_500_000, 0, 0, 0, 500_000),
    ]


def test_the_memory_for_waits_is_bounded(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes beyond is counted."""
    monkeypatch.setattr("fastpull.fuse_client.trace.MAX_WAITS", 3)
    for _ in range(5):
        recorder.waited(0, 1, Waited(fetch=1))

    assert (len(recorder.waits), recorder.waits_left_out) == (3, 2)


def test_the_record_tells_use_from_waste(recorder: Recorder, clock: Clock) -> None:
    """What the plan had, what was fetched, and what of it nobody needed."""
    recorder.arrived(IDS[1], Lane.PLAN, 40, SIZE)
    recorder.arrived(IDS[2], Lane.PLAN, 40, SIZE)
    recorder.arrived(IDS[3], Lane.DEMAND, 50, SIZE)
    clock.now = 101.0
    recorder.touched(1)
    recorder.touched(3)

    record = recorder.record(None, [1, 2])

    assert record.touches() == [(1, SIZE, SIZE, 1000, True), (3, 3 * SIZE, SIZE, 1000, False)]
    assert {f.lane: (f.chunks, f.received_bytes) for f in record.fetched if f.chunks} == {
        "plan": (2, 80),
        "demand": (1, 50),
    }
    assert (record.vain_chunks, record.vain_bytes, record.planned_chunks) == (1, SIZE, 2)
    assert (record.ended_by, record.content_bytes) == ("", 8 * SIZE)


def test_the_last_start_of_each_chain_is_kept(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the disk, a bounded number of them; what can not be read is no record."""
    monkeypatch.setattr("fastpull.fuse_client.start_record.MAX_FILES", 2)
    files = StartFiles(tmp_path)
    assert files.latest() is None
    recorder.touched(0)
    chains = [Digest(f"{number:064x}") for number in range(3)]
    for number, chain in enumerate(chains):
        files.write(msgspec.structs.replace(recorder.record("settled"), chain_id=str(chain)))
        os.utime(tmp_path / "starts" / f"{chain.hex}.start", ns=(number, number))
    files.write(msgspec.structs.replace(recorder.record("unmount"), chain_id=str(chains[2])))

    assert files.read(chains[0]) is None
    last = files.read(chains[2])
    assert last is not None
    assert last == files.latest()
    assert last.ended_by == "unmount"
    (tmp_path / "starts" / f"{chains[2].hex}.start").write_bytes(b"no record")
    assert files.read(chains[2]) is None
    assert getattr(files.latest(), "chain_id", "") == str(chains[1])


def test_after_its_end_nothing_is_recorded(recorder: Recorder) -> None:
    """A finished trace does not grow."""
    recorder.touched(0)
    recorder.finish("settled", node="")
    recorder.touched(1)
    recorder.waited(0, 1, Waited(fetch=1))

    assert (recorder.touched_bytes, recorder.waits) == (SIZE, [])


# -- the spool -------------------------------------------------------------------------------------------


class Receiver:
    def __init__(self) -> None:
        self.got: list[Trace] = []
        self.fails: Callable[[Trace], Exception | None] = lambda _trace: None

    async def __call__(self, trace: Trace) -> None:
        if (failure := self.fails(trace)) is not None:
            raise failure
        self.got.append(trace)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


@pytest.fixture
async def spool(tmp_path: Path, receiver: Receiver) -> AsyncIterator[TraceSpool]:
    tasks = Tasks()
    spool = TraceSpool(tmp_path / "traces", receiver, tasks)
    spool.start()
    yield spool
    await tasks.aclose()


def trace(number: int) -> Trace:
    return Trace(chain_id=CHAIN, node=str(number))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def test_traces_are_sent_and_forgotten(spool: TraceSpool, receiver: Receiver) -> None:
    """In the order of their making; once taken, nothing stays on the disk."""
    for number in range(3):
        spool.add(trace(number))
    await until(lambda: len(receiver.got) == 3 and not spool.files())

    assert [got.node for got in receiver.got] == ["0", "1", "2"]


async def test_a_proxy_that_is_away_gets_them_later(spool: TraceSpool, receiver: Receiver, tmp_path: Path) -> None:
    """They wait on the disk, also for the next daemon."""
    receiver.fails = lambda _trace: ProxyUnreachableError(["http://p"], "planned")
    spool.add(trace(1))
    spool.add(trace(2))
    await until(lambda: len(spool.files()) == 2)
    tasks = Tasks()
    other = Receiver()
    TraceSpool(tmp_path / "traces", other, tasks).start()
    await until(lambda: len(other.got) == 2)
    await tasks.aclose()


async def test_a_proxy_that_comes_back_is_told_at_once(spool: TraceSpool, receiver: Receiver) -> None:
    """Recovery of a proxy wakes the spool."""
    receiver.fails = lambda _trace: ProxyUnreachableError(["http://p"], "planned")
    spool.add(trace(1))
    await until(lambda: len(spool.files()) == 1)
    receiver.fails = lambda _trace: None
    spool.wake()
    await until(lambda: len(receiver.got) == 1)


async def test_a_refused_or_damaged_trace_does_not_stop_the_others(spool: TraceSpool, receiver: Receiver) -> None:
    """What the proxy will never take, and what is no trace, is dropped."""
    receiver.fails = lambda t: ProxyAnswerError("http://p", 404, "no such chain") if t.node == "1" else None
    spool._directory.joinpath("00000000000000000000-1-0.json").write_bytes(b"{")
    spool.add(trace(1))
    spool.add(trace(2))
    await until(lambda: not spool.files())

    assert [got.node for got in receiver.got] == ["2"]


async def test_the_disk_holds_a_bounded_number(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that is away for weeks costs the oldest traces."""
    monkeypatch.setattr(trace_spool, "MAX_FILES", 5)
    (tmp_path / "traces").mkdir()
    spool = TraceSpool(tmp_path / "traces", receiver, Tasks())
    for number in range(9):
        spool.add(trace(number))

    kept = [msgspec.json.decode(file.read_bytes(), type=Trace).node for file in spool.files()]
    assert kept == ["4", "5", "6", "7", "8"]
