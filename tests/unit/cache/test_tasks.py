"""Owned tasks, and one flight for each key."""

from __future__ import annotations

import asyncio
import logging

import pytest

from fastpull.cache.single_flight import SingleFlight
from fastpull.cache.tasks import Tasks

BOUND = 60.0


async def test_closing_cancels_what_runs_and_waits_for_it() -> None:
    """Also for tasks that take their time to end, and for those that a task spawns while it is cancelled."""
    tasks = Tasks()
    ended: list[str] = []

    async def last() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("last")

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            tasks.spawn(last(), name="last")
            for _ in range(5):
                await asyncio.sleep(0)
            ended.append("slow")

    tasks.spawn(slow(), name="slow")
    await asyncio.sleep(0)
    async with asyncio.timeout(BOUND):
        await tasks.aclose()

    assert len(tasks) == 0
    assert "slow" in ended


async def test_a_failure_that_nobody_awaits_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """By the name of the task; a finished task is no longer owned."""
    tasks = Tasks()

    async def fail() -> None:
        raise OSError("disk gone")

    with caplog.at_level(logging.WARNING):
        task = tasks.spawn(fail(), name="write it down")
        await asyncio.wait([task], timeout=BOUND)
        await asyncio.sleep(0)

    assert "write it down" in caplog.text
    assert "disk gone" in caplog.text
    assert len(tasks) == 0


async def test_a_result_comes_from_the_task() -> None:
    """Spawning gives the task itself."""
    tasks = Tasks()

    async def answer() -> int:
        return 42

    assert await tasks.spawn(answer(), name="answer") == 42
    await tasks.aclose()


class Fetches:
    """Counts fetches, which end when they are told to."""

    def __init__(self) -> None:
        self.started = 0
        self.go = asyncio.Event()
        self.failure: Exception | None = None

    async def __call__(self) -> str:
        self.started += 1
        await self.go.wait()
        if self.failure is not None:
            raise self.failure
        return f"fetch {self.started}"


async def some_steps() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_one_fetch_serves_all_who_ask() -> None:
    """Whoever comes while it runs gets its result; whoever comes after starts another."""
    tasks, fetches = Tasks(), Fetches()
    flight: SingleFlight[str, str] = SingleFlight(tasks)
    waiters = [tasks.spawn(flight.get("key", fetches), name="waiter") for _ in range(10)]
    await some_steps()
    assert "key" in flight
    fetches.go.set()

    assert await asyncio.gather(*waiters) == ["fetch 1"] * 10
    assert "key" not in flight
    assert await flight.get("key", fetches) == "fetch 2"


async def test_keys_do_not_wait_for_each_other() -> None:
    """Each has a fetch of its own."""
    tasks, slow, quick = Tasks(), Fetches(), Fetches()
    flight: SingleFlight[str, str] = SingleFlight(tasks)
    waiter = tasks.spawn(flight.get("slow", slow), name="waiter")
    await some_steps()
    quick.go.set()

    assert await flight.get("quick", quick) == "fetch 1"
    assert not waiter.done()
    await tasks.aclose()


async def test_a_waiter_that_goes_away_does_not_take_the_fetch_along() -> None:
    """The others still get it, even when the first to ask is the one who goes."""
    tasks, fetches = Tasks(), Fetches()
    flight: SingleFlight[str, str] = SingleFlight(tasks)
    first = tasks.spawn(flight.get("key", fetches), name="first")
    await some_steps()
    second = tasks.spawn(flight.get("key", fetches), name="second")
    await some_steps()
    first.cancel()
    await asyncio.wait([first], timeout=BOUND)
    fetches.go.set()

    assert first.cancelled()
    assert await second == "fetch 1"
    assert fetches.started == 1


async def test_a_failure_reaches_everybody_and_is_not_kept() -> None:
    """All waiters get it; the next who asks tries again."""
    tasks, fetches = Tasks(), Fetches()
    flight: SingleFlight[str, str] = SingleFlight(tasks)
    fetches.failure = OSError("unreachable")
    waiters = [tasks.spawn(flight.get("key", fetches), name="waiter") for _ in range(3)]
    await some_steps()
    fetches.go.set()

    outcomes = await asyncio.gather(*waiters, return_exceptions=True)
    assert [fetches.failure] * 3 == outcomes
    fetches.failure = None
    assert await flight.get("key", fetches) == "fetch 2"


async def test_shutdown_leaves_no_waiter_hanging() -> None:
    """When the owner of the tasks closes, also before a fetch took its first step."""
    tasks, others, fetches = Tasks(), Tasks(), Fetches()
    flight: SingleFlight[str, str] = SingleFlight(tasks)
    waiter = others.spawn(flight.get("key", fetches), name="waiter")
    await asyncio.sleep(0)
    async with asyncio.timeout(BOUND):
        await tasks.aclose()
        await asyncio.wait([waiter])

    assert waiter.cancelled()
    assert "key" not in flight
