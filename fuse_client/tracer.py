"""Records the start of every chain that is mounted, and hands the finished traces to the spool."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from fastpull.cache.digest import Digest
from fastpull.cache.tasks import Tasks
from fastpull.cache.wire import Trace
from fastpull.config.node import TraceSettings
from fastpull.fuse_client.device import ChainDevice
from fastpull.fuse_client.trace import EndedBy, Recorder

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


class Tracer:
    """One recorder for each mounted chain. The last one of a chain stays for the report."""

    def __init__(self, settings: TraceSettings, keep: Callable[[Trace], None], node: str, tasks: Tasks) -> None:
        self.recorders: dict[Digest, Recorder] = {}
        self._settings = settings
        self._keep = keep
        self._node = node
        self._tasks = tasks
        self._watching: dict[Digest, asyncio.Task[None]] = {}

    def start(self, device: ChainDevice) -> None:
        if not self._settings.enabled or device.chain in self._watching:
            return
        recorder = Recorder(str(device.chain), device.map)
        self.recorders[device.chain] = device.observer = recorder
        self._watching[device.chain] = self._tasks.spawn(
            self._watch(device.chain, recorder), name=f"trace {device.chain}"
        )

    def stop(self, chain: Digest) -> None:
        """The chain is unmounted: what was recorded until now is its trace."""
        task = self._watching.pop(chain, None)
        if task is not None:
            task.cancel()
            self._end(chain, "unmount")
        self.recorders.pop(chain, None)

    def discard(self, chain: Digest) -> None:
        """Record no more of this start: what is read from now on is not what it needs."""
        task = self._watching.pop(chain, None)
        if task is not None:
            task.cancel()
            self.recorders[chain].finish("limit", node=self._node)

    async def _watch(self, chain: Digest, recorder: Recorder) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            ended_by = recorder.verdict(
                settle_seconds=self._settings.settle_seconds, max_seconds=self._settings.max_seconds
            )
            if ended_by is not None:
                del self._watching[chain]
                self._end(chain, ended_by)
                return

    def _end(self, chain: Digest, ended_by: EndedBy) -> None:
        trace = self.recorders[chain].finish(ended_by, node=self._node)
        if trace is not None:
            log.info("chain %s: a start of %.1f s, %d chunks", chain, trace.seconds, len(trace.chunks))
            self._keep(trace)
