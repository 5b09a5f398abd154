"""One piece of work at a time for each key."""

from __future__ import annotations

import asyncio

from fastpull.cache.keyed_locks import KeyedLocks


async def test_one_key_excludes_and_another_does_not() -> None:
    """Work on a key waits for the work before it; work on another key does not; nothing is kept afterwards."""
    locks: KeyedLocks[str] = KeyedLocks()
    seen: list[str] = []

    async def second() -> None:
        async with locks.alone("a"):
            seen.append("second")

    async with locks.alone("a"):
        waiting = asyncio.create_task(second())  # noqa: TID251 - ends with the test
        await asyncio.sleep(0)
        async with locks.alone("b"):
            seen.append("other")
        seen.append("first")
    await waiting

    assert seen == ["other", "first", "second"]
    assert len(locks) == 0


async def test_who_gives_up_waiting_leaves_nothing() -> None:
    """A cancelled waiter is no user any more."""
    locks: KeyedLocks[str] = KeyedLocks()

    async def wait() -> None:
        async with locks.alone("a"):
            raise AssertionError("was never free")

    async with locks.alone("a"):
        waiting = asyncio.create_task(wait())  # noqa: TID251 - ends with the test
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])

    assert waiting.cancelled()
    assert len(locks) == 0
