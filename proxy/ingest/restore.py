"""Evicted chunks come back by ingesting again the layers that hold them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection

from fastpull.cache.digest import ChunkId
from fastpull.cache.single_flight import SingleFlight
from fastpull.cache.store import ChunkStore
from fastpull.cache.tasks import Tasks
from fastpull.image.errors import IndexFormatError
from fastpull.proxy.ingest.chains import Chains
from fastpull.proxy.ingest.failures import LayerFailedError
from fastpull.proxy.ingest.figures import chunks_of
from fastpull.proxy.ingest.layers import Layers

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.25  # chunks are readable as the ingest goes, long before its end
_AGAIN_SECONDS = 30.0  # a layer just ingested whose chunks are gone: the store is too small for it


class Restore:
    """Brings chunks of a chain back. Whoever waits is served as soon as its own chunks are there."""

    def __init__(
        self,
        store: ChunkStore,
        layers: Layers,
        chains: Chains,
        tasks: Tasks,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._layers = layers
        self._chains = chains
        self._tasks = tasks
        self._clock = clock
        self._searches: SingleFlight[str, None] = SingleFlight(tasks)
        self._wanted: dict[str, set[ChunkId]] = {}
        self._ingests: dict[str, asyncio.Task[None]] = {}
        self._ended: dict[str, float] = {}

    async def restore(self, chain_id: str, chunks: Collection[ChunkId], seconds: float) -> bool:
        """Wait until all ``chunks`` are in the store; false when they are not after ``seconds`` or can not be had."""
        until = self._clock() + seconds
        ids = list(dict.fromkeys(chunks))
        diff_ids = self._chains.diff_ids(chain_id) or ()
        searched = False
        while not all(self._store.has(ids)):
            left = until - self._clock()
            running = [task for diff_id in diff_ids if (task := self._ingests.get(diff_id)) is not None]
            if left <= 0 or (searched and not running):
                return False
            if running:
                await asyncio.wait(running, timeout=min(_LOOK_SECONDS, left), return_when=asyncio.FIRST_COMPLETED)
                continue
            self._wanted.setdefault(chain_id, set()).update(ids)
            try:
                async with asyncio.timeout(left):
                    await self._searches.get(chain_id, lambda: self._search(chain_id, diff_ids))
            except TimeoutError:
                return False
            # Joined a search that had begun before: then ours are still to be looked for.
            searched = self._wanted.get(chain_id, set()).isdisjoint(ids)
        return True

    async def _search(self, chain_id: str, diff_ids: Collection[str]) -> None:
        """Start the ingest of the layers that hold what is wanted, the fewest that do; of those that may, all."""
        wanted = self._wanted.pop(chain_id, set())
        unknown: list[str] = []
        for diff_id in reversed(list(dict.fromkeys(diff_ids))):
            if not wanted:
                return
            try:
                held = wanted & await asyncio.to_thread(chunks_of, await self._layers.index(diff_id))
            except IndexFormatError as exc:
                log.warning("%s: only another ingest can tell what is in the layer", exc)
                unknown.append(diff_id)
                continue
            if held:
                self._start(diff_id, len(held))
                wanted -= held
        if wanted:
            for diff_id in unknown:
                self._start(diff_id, len(wanted))

    def _start(self, diff_id: str, gone: int) -> None:
        if self._clock() - self._ended.get(diff_id, -_AGAIN_SECONDS) >= _AGAIN_SECONDS:
            log.info("layer %s is ingested again for up to %d chunks that are gone", diff_id, gone)
            self._ingests[diff_id] = self._tasks.spawn(self._ingest(diff_id), name=f"restore {diff_id}")

    async def _ingest(self, diff_id: str) -> None:
        try:
            await self._layers.restore(diff_id)
        except LayerFailedError as exc:
            log.warning("layer %s can not be ingested again: %s", diff_id, exc)
        finally:
            self._ended[diff_id] = self._clock()
            self._ingests.pop(diff_id, None)
