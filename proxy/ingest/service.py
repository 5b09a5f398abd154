"""The ingest as the rest of the proxy sees it: manifests go in, mountable chains come out."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Literal

from fastpull.cache.errors import CacheError
from fastpull.cache.single_flight import SingleFlight
from fastpull.cache.tasks import Tasks
from fastpull.cache.wire import ChainState, LayerProgress
from fastpull.image.errors import ImageError
from fastpull.proxy.errors import MirrorError
from fastpull.proxy.ingest.chains import Chains, ChainUnknownError
from fastpull.proxy.ingest.changes import Changes
from fastpull.proxy.ingest.failures import Failure, Failures, LayerFailedError
from fastpull.proxy.ingest.images import Images
from fastpull.proxy.ingest.lately import Lately
from fastpull.proxy.ingest.layers import Layers
from fastpull.proxy.ingest.oci import is_index
from fastpull.proxy.ingest.state import BuiltRecord
from fastpull.proxy.mirror.service import ManifestSeen

log = logging.getLogger(__name__)

Trigger = Literal["on-pull", "on-warm"]

FAILURES = (LayerFailedError, ChainUnknownError, ImageError, MirrorError, CacheError, OSError, TimeoutError)
"""What preparing an image may end in; anything else is a defect."""


class Ingest:
    """Starts ingests when manifests pass and when nodes ask, and tells how far they are."""

    def __init__(
        self,
        images: Images,
        layers: Layers,
        chains: Chains,
        tasks: Tasks,
        changes: Changes,
        *,
        trigger: Trigger,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.images = images
        self.layers = layers
        self.chains = chains
        self._tasks = tasks
        self._changes = changes
        self._trigger = trigger
        self._clock = clock
        self._flights: SingleFlight[str, None] = SingleFlight(tasks)
        self._failures = Failures(clock)  # of building; a layer's are with the layer
        self._learning = 0
        self._is_stopping = False
        self._lately = Lately(clock)

    def on_manifest(self, seen: ManifestSeen) -> None:
        """A manifest has passed through the mirror: learn its image, and ingest it unless told to wait for a warm.

        Returns at once and never raises: a pull does not depend on us.
        """
        if self._lately.is_new(f"{seen.upstream}/{seen.repository}@{seen.manifest.digest}/{seen.reference}"):
            self._learning += 1
            _ = self._tasks.spawn(self._learn(seen), name=f"learn {seen.repository}:{seen.reference}")

    async def _learn(self, seen: ManifestSeen) -> None:
        is_tag = not seen.reference.startswith("sha256:")
        name = f"{seen.upstream}/{seen.repository}{':' if is_tag else '@'}{seen.reference}"
        try:
            if is_index(seen.manifest.body):
                self.images.note_index(seen.upstream, seen.repository, seen.manifest.body, name)
                return
            record = await self.images.learn(seen.upstream, seen.repository, seen.manifest, name=name if is_tag else "")
        except FAILURES as exc:
            log.warning("can not learn %s: %s", name, exc)
            return
        finally:
            self._learning -= 1
            self._changes.notify()
        if record is not None and record.chain_id and self._trigger == "on-pull":
            self.start(record.chain_id)

    def start(self, chain_id: str) -> None:
        """Prepare the chain in the background, unless it is there or has just failed."""
        if (
            self.chains.built(chain_id) is None
            and chain_id not in self._flights
            and self._failures.current(chain_id) is None
        ):
            _ = self._tasks.spawn(self._prepare_quietly(chain_id), name=f"prepare {chain_id}")

    async def prepare(self, chain_id: str) -> BuiltRecord:
        """Ingest what is missing of the chain and build it. Raises one of ``FAILURES``."""
        built = self.chains.built(chain_id)
        if built is None:
            try:
                await self._flights.get(chain_id, lambda: self._prepare(chain_id))
            finally:
                self._changes.notify()  # not inside of the flight: who looks now may start the next one
            built = await self.chains.ensure(chain_id)
        return built

    def stop_waiting(self) -> None:
        """The proxy is about to end: whoever waits for a state gets it as it is."""
        self._is_stopping = True
        self._changes.notify()

    async def state(self, chain_id: str, wait_seconds: float, *, build: bool = True) -> ChainState:
        """How far the chain is; asking for one that is known begins its ingest.

        Waits up to ``wait_seconds`` for an end of what is running, or for the config of a manifest that passes at
        this moment. With ``build`` false a chain whose layers are all indexed is ready without artifacts.
        """
        until = self._clock() + wait_seconds
        while True:
            state = self._look(chain_id, build=build)
            is_open = state.state == "indexing" or (state.state == "unknown" and self._learning > 0)
            left = until - self._clock()
            if not is_open or left <= 0 or self._is_stopping:
                return state
            await self._changes.wait(left)

    def _look(self, chain_id: str, *, build: bool) -> ChainState:
        diff_ids = self.chains.diff_ids(chain_id)
        if diff_ids is None:
            return ChainState(chain_id=chain_id, state="unknown")
        layers = tuple(self.layers.progress(diff_id) for diff_id in diff_ids)
        built = self.chains.built(chain_id)
        if built is not None:
            return ChainState(
                chain_id=chain_id,
                state="ready",
                layers=layers,
                bootstrap_digest=built.bootstrap_digest,
                bootstrap_bytes=built.bootstrap_bytes,
                chunk_map_digest=built.chunk_map_digest,
                chunk_map_bytes=built.chunk_map_bytes,
                device_bytes=built.device_bytes,
                content_bytes=built.content_bytes,
                chunks=built.chunks,
            )
        failures = [failure for diff_id in diff_ids if (failure := self.layers.failure(diff_id)) is not None]
        if (failure := self._failures.current(chain_id)) is not None:
            failures.append(failure)
        if not build and not failures and all(layer.stage == "ready" for layer in layers):
            return ChainState(chain_id=chain_id, state="ready", layers=layers, content_bytes=_content(layers))
        if failures:
            return ChainState(chain_id=chain_id, state="failed", layers=layers, error=failures[0].error)
        if self._trigger == "on-warm" and not self._was_begun(chain_id, diff_ids):
            return ChainState(chain_id=chain_id, state="unknown", layers=layers, error="not warmed")
        if build:
            self.start(chain_id)
        else:
            self._start_layers(diff_ids)
        return ChainState(chain_id=chain_id, state="indexing", layers=layers)

    def _start_layers(self, diff_ids: Sequence[str]) -> None:
        """Whoever waits for an index must not wait for one that nobody makes."""
        for diff_id in dict.fromkeys(diff_ids):
            if not self.layers.is_ready(diff_id) and not self.layers.is_running(diff_id):
                _ = self._tasks.spawn(self._ensure_quietly(diff_id), name=f"ingest {diff_id}")

    async def _ensure_quietly(self, diff_id: str) -> None:
        try:
            await self.layers.ensure(diff_id)
        except FAILURES as exc:
            log.warning("layer %s can not be indexed, nodes pull it the usual way: %s", diff_id, exc)
        finally:
            self._changes.notify()

    def _was_begun(self, chain_id: str, diff_ids: Sequence[str]) -> bool:
        return (
            chain_id in self._flights
            or self.chains.is_building(chain_id)
            or any(self.layers.is_running(diff_id) or self.layers.is_ready(diff_id) for diff_id in diff_ids)
        )

    async def _prepare_quietly(self, chain_id: str) -> None:
        try:
            await self.prepare(chain_id)
        except FAILURES as exc:
            log.warning("chain %s can not be prepared, nodes pull it the usual way: %s", chain_id, exc)

    async def _prepare(self, chain_id: str) -> None:
        """All layers side by side; one that fails stops none of the others, which other images may share."""
        diff_ids = self.chains.diff_ids(chain_id)
        if diff_ids is None:
            raise ChainUnknownError(chain_id)
        results = await asyncio.gather(
            *(self.layers.ensure(diff_id) for diff_id in dict.fromkeys(diff_ids)), return_exceptions=True
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
        try:
            await self.chains.ensure(chain_id)
        except LayerFailedError:
            raise  # remembered with the layer
        except FAILURES as exc:
            self._failures.put(chain_id, Failure.of(f"chain {chain_id}", exc, self._clock()))
            self._changes.notify()
            raise
        self._failures.forget(chain_id)


def _content(layers: Sequence[LayerProgress]) -> int:
    return sum(layer.content_bytes for layer in layers)
