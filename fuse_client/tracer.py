"""Records the start of every chain that is mounted, and hands the finished traces to the spool."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence

from fastpull.cache.digest import ChunkId, Digest
from fastpull.cache.tasks import Tasks
from fastpull.cache.wire import Trace
from fastpull.config.node import TraceSettings
from fastpull.fuse_client.device import ChainDevice
from fastpull.fuse_client.fetch.queue import Lane
from fastpull.fuse_client.start_record import StartFiles, StartRecord
from fastpull.fuse_client.trace import EndedBy, Recorder

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


class Tracer:
    """One recorder for each start that goes on; of those that ended, ``starts`` has the records.

    ``plans``: the places of each chain's plan in its chunk map.
    """

    def __init__(
        self,
        settings: TraceSettings,
        keep: Callable[[Trace], None],
        starts: StartFiles,
        plans: Mapping[Digest, Sequence[int]],
        node: str,
        tasks: Tasks,
    ) -> None:
        self._recorders: dict[Digest, Recorder] = {}
        self._settings = settings
        self._keep = keep
        self._starts = starts
        self._plans = plans
        self._node = node
        self._tasks = tasks
        self._watching: dict[Digest, asyncio.Task[None]] = {}

    def start(self, device: ChainDevice) -> None:
        if not self._settings.enabled or device.chain in self._watching:
            return
        recorder = Recorder(str(device.chain), device.map)
        self._recorders[device.chain] = device.observer = recorder
        self._watching[device.chain] = self._tasks.spawn(
            self._watch(device.chain, recorder), name=f"trace {device.chain}"
        )

    def stop(self, chain: Digest) -> None:
        """The chain is unmounted: what was recorded until now is its trace."""
        task = self._watching.pop(chain, None)
        if task is not None:
            task.cancel()
            self._end(chain, "unmount")

    def arrived(self, chain: Digest, chunk: ChunkId, lane: Lane, received: int, content: int) -> None:
        """A chunk was fetched for a chain."""
        recorder = self._recorders.get(chain)
        if recorder is not None:
            recorder.arrived(chunk, lane, received, content)

    def last_start(self, chain: Digest | None) -> StartRecord | None:
        """The chain's start that goes on, or its last one; without a chain the last of all.

        Takes some microseconds for each chunk of the chain.
        """
        begun = [(r.started_at, c) for c, r in self._recorders.items() if r.first_touch is not None]
        if chain is None:
            ended = self._starts.latest()
            newest = max(begun, key=lambda start: start[0], default=None)
            if newest is None or (ended is not None and ended.started_at > newest[0]):
                return ended
            chain = newest[1]
        if any(chain == going_on for _, going_on in begun):
            return self._recorders[chain].record(None, self._plans.get(chain, ()))
        return self._starts.read(chain)

    def is_recording(self, chain: Digest) -> bool:
        """Whether a start of the chain goes on."""
        return chain in self._recorders

    def discard(self, chain: Digest) -> None:
        """Record no more of this start: what is read from now on is not what it needs."""
        task = self._watching.pop(chain, None)
        if task is not None:
            task.cancel()
            recorder = self._recorders.pop(chain)
            if recorder.finish("limit", node=self._node) is not None:
                self._starts.write(recorder.record("limit", self._plans.get(chain, ())))
            recorder.forget()

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
        recorder = self._recorders.pop(chain)
        trace = recorder.finish(ended_by, node=self._node)
        if trace is not None:
            log.info("chain %s: a start of %.1f s, %d chunks", chain, trace.seconds, len(trace.chunks))
            self._keep(trace)
            self._starts.write(recorder.record(ended_by, self._plans.get(chain, ())))
        recorder.forget()
