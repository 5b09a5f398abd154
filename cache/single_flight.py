"""One running fetch serves everybody who asks for the same thing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from fastpull.cache.tasks import Tasks

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SingleFlight(Generic[K, V]):
    """Share one running fetch between every task that asks for its key.

    Invariant: a key is in ``_running`` exactly while its task is unfinished.
    A waiter that is cancelled leaves the fetch running for the others; a failure reaches all of them.
    """

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._running: dict[K, asyncio.Task[V]] = {}

    def __contains__(self, key: K) -> bool:
        return key in self._running

    async def get(self, key: K, fetch: Callable[[], Coroutine[Any, Any, V]]) -> V:
        task = self._running.get(key)
        if task is None:  # no await up to here, so no second fetch can start
            task = self._running[key] = self._tasks.spawn(fetch(), name=f"fetch {key}")
            # A callback, not a finally: a task cancelled before its first step never enters its body.
            task.add_done_callback(lambda _: self._running.pop(key))
        return await asyncio.shield(task)
