"""Can this proxy do its work? Asked by ``/readyz``, found out by trying."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from fastpull.cache.errors import CacheError

log = logging.getLogger(__name__)

_PERIOD_SECONDS = 10.0
_PROBE_SECONDS = 30.0


class Health:
    """Alive is whoever answers; ready is whose store takes writes. ``problem`` is empty when ready."""

    def __init__(self) -> None:
        self.problem = "starting"
        self.started = time.monotonic()

    @property
    def is_ready(self) -> bool:
        return not self.problem

    async def watch(self, probe: Callable[[], object]) -> None:
        """Run ``probe``, a blocking write, on a thread of its own every few seconds, for ever."""
        while True:
            await self.check(probe)
            await asyncio.sleep(_PERIOD_SECONDS)

    async def check(self, probe: Callable[[], object]) -> None:
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                await asyncio.to_thread(probe)
        except TimeoutError:
            self._turn(f"the store takes no write for {_PROBE_SECONDS:.0f} s")
        except (CacheError, OSError) as exc:
            self._turn(f"the store can not be written: {exc}")
        else:
            self._turn("")

    def _turn(self, problem: str) -> None:
        if problem and problem != self.problem:
            log.error("not ready: %s", problem)
        elif not problem and self.problem not in ("", "starting"):
            log.warning("ready again")
        self.problem = problem
