"""Every wait of a gRPC thread has a bound."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest
from harness.snapshots import cancel_all_tasks

from fastpull.fuse_client.errors import ProxyUnreachableError
from fastpull.fuse_client.snapshotter.errors import SnapshotCancelledError, SnapshotUnavailableError
from fastpull.fuse_client.snapshotter.loop_calls import LoopCalls, Patient


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    asyncio.run_coroutine_threadsafe(cancel_all_tasks(), loop).result(30)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


class Gone(Patient):
    """A caller that leaves as soon as the wait begins."""

    def add_callback(self, callback: Callable[[], None]) -> bool:
        callback()
        return True


class Late(Patient):
    def time_remaining(self) -> float | None:
        return 0.01


async def forever() -> None:
    await asyncio.Event().wait()


async def fail() -> None:
    raise ProxyUnreachableError(["http://proxy"], "refused")


def test_the_result_comes_back(loop: asyncio.AbstractEventLoop) -> None:
    async def work() -> int:
        return 7

    assert LoopCalls(loop).wait_for(work, "seven", seconds=30, caller=Patient()) == 7


def test_a_wait_ends_with_its_bound_or_the_callers(loop: asyncio.AbstractEventLoop) -> None:
    calls = LoopCalls(loop)
    with pytest.raises(SnapshotUnavailableError, match="not done within"):
        calls.wait_for(forever, "x", seconds=0.01, caller=Patient())
    with pytest.raises(SnapshotUnavailableError, match="not done within"):
        calls.wait_for(forever, "x", seconds=3600, caller=Late())
    with pytest.raises(SnapshotCancelledError):
        calls.wait_for(forever, "x", seconds=3600, caller=Gone())


def test_a_failure_keeps_its_remedy(loop: asyncio.AbstractEventLoop) -> None:
    with pytest.raises(SnapshotUnavailableError, match="refused") as caught:
        LoopCalls(loop).wait_for(fail, "x", seconds=30, caller=Patient())
    assert "fastpull-proxy serve" in caught.value.remedy


def test_waiting_callers_can_not_take_all_threads(loop: asyncio.AbstractEventLoop) -> None:
    calls = LoopCalls(loop, max_waiting=1)
    waiting = threading.Event()

    class Watched(Patient):
        def add_callback(self, callback: Callable[[], None]) -> bool:
            waiting.set()
            return super().add_callback(callback)

    def wait() -> None:
        with pytest.raises(SnapshotUnavailableError):
            calls.wait_for(forever, "first", seconds=1, caller=Watched())

    first = threading.Thread(target=wait)
    first.start()
    assert waiting.wait(30)
    with pytest.raises(SnapshotUnavailableError, match="too many"):
        calls.wait_for(forever, "second", seconds=30, caller=Patient())
    first.join()


def test_a_closed_loop_is_an_answer_too() -> None:
    loop = asyncio.new_event_loop()
    loop.close()

    with pytest.raises(SnapshotUnavailableError, match="stopping"):
        LoopCalls(loop).wait_for(forever, "x", seconds=1, caller=Patient())
