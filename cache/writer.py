"""The one thread on which a process writes to its stores."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, Self, TypeVar

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class Writer:
    """Runs blocking store calls one after another, off the event loop.

    LMDB admits one write transaction at a time, so one thread is no bottleneck and gives an order: what was
    submitted first is done first. Work that was submitted is done, also when nobody waits for it any more.
    """

    def __init__(self, name: str = "writer") -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, work: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Do ``work`` on the thread and return what it returns.

        Cancelling the wait does not cancel the work; if it then fails, the failure is logged.
        """
        done = asyncio.wrap_future(self._thread.submit(work, *args, **kwargs))
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            done.add_done_callback(_report)
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Finish what was submitted, then stop. Later calls of ``run`` raise ``RuntimeError``."""
        await asyncio.to_thread(self._thread.shutdown)


def _report(done: asyncio.Future[Any]) -> None:
    if not done.cancelled() and (exc := done.exception()) is not None:
        log.warning("a store write that nobody waited for failed: %r", exc)
