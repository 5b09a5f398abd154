"""Somebody waits for news of the ingest; somebody has some."""

from __future__ import annotations

import asyncio


class Changes:
    """A broadcast without a value: whoever waits when ``notify`` is called looks again.

    Look at the state first and wait then, with no ``await`` between: a notification is not kept.
    """

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def notify(self) -> None:
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, timeout: float) -> bool:
        """Wait for the next notification; false after ``timeout`` seconds without one."""
        try:
            async with asyncio.timeout(timeout):
                await self._next.wait()
        except TimeoutError:
            return False
        return True
