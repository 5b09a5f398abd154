"""Every background task has an owner, a name and a reaper."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, ParamSpec, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")
P = ParamSpec("P")


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """``asyncio.to_thread``, except that a caller who is cancelled waits for the end of the work.

    For work with something that is closed next.
    """
    job = asyncio.get_running_loop().run_in_executor(None, partial(work, *args, **kwargs))
    try:
        return await asyncio.shield(job)
    except asyncio.CancelledError:
        await asyncio.wait((job,))
        raise


class Tasks:
    """Owns the tasks that outlive one request. Closing it cancels what still runs and waits for it."""

    def __init__(self) -> None:
        self._live: set[asyncio.Task[Any]] = set()

    def __len__(self) -> int:
        return len(self._live)

    def spawn(self, work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        task = asyncio.create_task(work, name=name)  # noqa: TID251 - the one place
        self._live.add(task)  # the event loop keeps only a weak reference
        task.add_done_callback(self._reap)
        return task

    async def aclose(self) -> None:
        while live := list(self._live):
            for task in live:
                task.cancel()
            await asyncio.wait(live)
            self._live.difference_update(live)

    def _reap(self, task: asyncio.Task[Any]) -> None:
        self._live.discard(task)
        if not task.cancelled() and (exc := task.exception()) is not None:
            log.warning("task %s failed: %r", task.get_name(), exc)
