"""The lock of pyfuse3's workers."""

from __future__ import annotations

import asyncio
import random

from fastpull.cache.tasks import Tasks
from fastpull.fuse_client.portable.worker_lock import WorkerLock


async def test_who_comes_again_without_waiting_gets_it_again() -> None:
    """No turn of the event loop lies between two requests that need none."""
    lock = WorkerLock()
    order: list[str] = []

    async def work(name: str, requests: int) -> None:
        for _ in range(requests):
            async with lock:
                order.append(name)

    await asyncio.gather(work("a", 3), work("b", 2), work("c", 1))
    assert order == ["a", "a", "a", "b", "b", "c"]


async def test_who_waits_for_something_else_lets_another_in() -> None:
    """A read that is not answered yet keeps nobody from reading requests."""
    lock = WorkerLock()
    content = asyncio.Event()
    answered: list[str] = []

    async def waits() -> None:
        async with lock:
            pass
        await content.wait()
        answered.append("slow")

    async def goes_on() -> None:
        async with lock:
            await asyncio.sleep(0)
        answered.append("quick")
        content.set()

    async with asyncio.timeout(30):
        await asyncio.gather(waits(), goes_on(), goes_on())
    assert (answered[0], sorted(answered)) == ("quick", ["quick", "quick", "slow"])


async def test_it_is_held_by_one_at_a_time_and_nobody_waits_for_ever() -> None:
    """Workers that wait inside, outside or not at all, and some that are cancelled at any moment."""
    for seed in range(40):
        rng = random.Random(seed)
        lock = WorkerLock()
        holders = 0
        done = 0

        async def work(rng: random.Random = rng, lock: WorkerLock = lock) -> None:
            nonlocal holders, done
            for _ in range(8):
                async with lock:
                    holders += 1
                    assert holders == 1
                    try:
                        for _ in range(rng.randrange(3)):
                            await asyncio.sleep(0)
                    finally:
                        holders -= 1
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
            done += 1

        tasks = Tasks()
        workers = [tasks.spawn(work(), name="worker") for _ in range(6)]
        for victim in workers[:3]:
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
            victim.cancel()
        async with asyncio.timeout(30):
            await asyncio.gather(*workers, return_exceptions=True)
        assert done >= 3
        assert holders == 0
        async with asyncio.timeout(30), lock:
            pass
