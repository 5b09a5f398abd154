"""The thread on which a process writes."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest

from fastpull.cache.writer import Writer


async def test_work_runs_in_order_on_one_thread_of_its_own() -> None:
    """What is submitted first is done first, and results come back."""
    done: list[int] = []

    def work(number: int, *, factor: int = 1) -> tuple[int, int]:
        done.append(number)
        return number * factor, threading.get_ident()

    async with Writer() as writer:
        results = await asyncio.gather(*(writer.run(work, number, factor=2) for number in range(50)))

    assert list(range(50)) == done
    assert [2 * number for number in range(50)] == [result for result, _ in results]
    assert len({thread for _, thread in results}) == 1
    assert threading.get_ident() not in {thread for _, thread in results}


async def test_a_failure_reaches_who_waits_for_it() -> None:
    """And nobody else."""

    def fail() -> None:
        raise OSError("no space")

    async with Writer() as writer:
        with pytest.raises(OSError, match="no space"):
            await writer.run(fail)
        assert await writer.run(lambda: 7) == 7


async def test_cancelling_the_wait_does_not_cancel_the_work(caplog: pytest.LogCaptureFixture) -> None:
    """Neither for work that runs nor for work that waits; a failure that nobody saw is logged."""
    started, go = threading.Event(), threading.Event()
    done: list[str] = []

    def running() -> None:
        started.set()
        go.wait(60)
        done.append("running")

    def waiting() -> None:
        done.append("waiting")
        raise OSError("too late to tell")

    async with Writer() as writer:
        waits = [asyncio.ensure_future(writer.run(work)) for work in (running, waiting)]  # noqa: TID251 - cancelled below
        await asyncio.to_thread(started.wait, 60)
        for wait in waits:
            wait.cancel()
        assert all(
            isinstance(end, asyncio.CancelledError) for end in await asyncio.gather(*waits, return_exceptions=True)
        )
        go.set()
        with caplog.at_level(logging.WARNING):
            await writer.run(lambda: None)

    assert done == ["running", "waiting"]
    assert "too late to tell" in caplog.text


async def test_a_closed_writer_has_finished_and_takes_nothing() -> None:
    """Closing waits for what was submitted."""
    writer = Writer()
    done: list[int] = []
    waits = [asyncio.ensure_future(writer.run(done.append, number)) for number in range(20)]  # noqa: TID251 - awaited below
    await asyncio.sleep(0)
    await writer.aclose()

    assert list(range(20)) == done
    await asyncio.gather(*waits)
    with pytest.raises(RuntimeError):
        await writer.run(done.append, 99)
