"""Warm jobs: somebody wants an image ready before anybody needs it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field

import msgspec

from fastpull.cache.digest import ChunkId
from fastpull.cache.errors import StoreFullError
from fastpull.cache.store import ChunkStore
from fastpull.cache.tasks import Tasks
from fastpull.cache.wire import LayerProgress, WarmStage, WarmState
from fastpull.proxy.errors import MirrorError
from fastpull.proxy.ingest.failures import remedy_for
from fastpull.proxy.ingest.restore import Restore
from fastpull.proxy.ingest.service import FAILURES, Ingest
from fastpull.proxy.ingest.state import ImageRecord
from fastpull.proxy.references import Platform

log = logging.getLogger(__name__)

_KEPT_JOBS = 256
_MOST_RUNNING = 256
_RESTORE_SECONDS = 3600.0


@dataclass(slots=True)
class _Job:
    id: str
    image: str
    platform: Platform | None
    started: float
    stage: WarmStage = "resolving"
    record: ImageRecord | None = None
    ready_before: frozenset[str] = field(default_factory=frozenset)  # diffIDs that needed no work
    ended: float | None = None
    error: str = ""
    remedy: str = ""
    task: asyncio.Task[None] | None = None


class TooManyWarmsError(Exception):
    """So many images are being warmed already that another would only wait."""

    def __init__(self) -> None:
        super().__init__(f"{_MOST_RUNNING} images are being warmed already")


class Warms:
    """Runs and remembers warm jobs. Two requests for the same image share one job while it runs."""

    def __init__(self, ingest: Ingest, restore: Restore, store: ChunkStore, tasks: Tasks) -> None:
        self._ingest = ingest
        self._restore = restore
        self._store = store
        self._tasks = tasks
        self._jobs: OrderedDict[str, _Job] = OrderedDict()

    async def start(self, image: str, platform: Platform | None, *, wait_seconds: float) -> WarmState:
        """Begin, or join, a job; wait a little for its end. Raise ``MalformedNameError``, ``TooManyWarmsError``."""
        reference = str(self._ingest.images.parse(image))
        wanted = (reference, platform)
        running = [job for job in self._jobs.values() if job.ended is None]
        job = next((job for job in running if (job.image, job.platform) == wanted), None)
        if job is None:
            if len(running) >= _MOST_RUNNING:
                raise TooManyWarmsError
            job = _Job(id=secrets.token_hex(8), image=reference, platform=platform, started=time.monotonic())
            self._jobs[job.id] = job
            job.task = self._tasks.spawn(self._run(job), name=f"warm {reference}")
            self._forget_oldest()
        return await self._after(job, wait_seconds)

    async def get(self, job_id: str, *, wait_seconds: float = 0.0) -> WarmState | None:
        """How far a job is, after waiting for its end a while; ``None`` = there is none (any more)."""
        job = self._jobs.get(job_id)
        return None if job is None else await self._after(job, wait_seconds)

    async def _after(self, job: _Job, seconds: float) -> WarmState:
        if job.task is not None and not job.task.done() and seconds > 0:
            await asyncio.wait([job.task], timeout=seconds)
        return self._state(job)

    async def _run(self, job: _Job) -> None:
        try:
            job.record = record = await self._ingest.images.resolve(job.image, job.platform)
            diff_ids = dict.fromkeys(record.diff_ids)
            job.ready_before = frozenset(diff_id for diff_id in diff_ids if self._ingest.layers.is_ready(diff_id))
            job.stage = "working"
            await self._ingest.images.mark_warmed(record)
            if record.chain_id:
                await self._ingest.prepare(record.chain_id)
                await self._bring_back(record.chain_id)
        except FAILURES as exc:
            self._fail(job, exc)
        except Exception as exc:
            log.exception("warm %s failed", job.image)
            self._fail(job, exc)
        except asyncio.CancelledError:
            job.stage, job.error, job.remedy = "failed", "the proxy is stopping", "warm again when it is back"
            raise
        else:
            job.stage = "done"
        finally:
            job.ended = time.monotonic()

    def _fail(self, job: _Job, exc: BaseException) -> None:
        job.stage = "failed"
        job.error = str(exc) or type(exc).__name__
        job.remedy = remedy_for(exc)
        if isinstance(exc, MirrorError):
            log.warning("warm %s: %s", job.image, exc)

    async def _bring_back(self, chain_id: str) -> None:
        """Warm means that every chunk is here, also those that were evicted since; and used just now."""
        chunk_map = await self._ingest.chains.chunk_map(chain_id)
        chunks = sorted(set(chunk_map.ids()))  # neighbours in the index are looked up twice as fast
        missing = await asyncio.to_thread(self._missing, chunks)
        if missing and not await self._restore.restore(chain_id, missing, _RESTORE_SECONDS):
            lost = len(await asyncio.to_thread(self._missing, chunks))
            raise StoreFullError(f"{lost} of {len(chunks)} chunks can not be kept: the store is too small, or full")
        self._store.touch(chunks)

    def _missing(self, chunks: list[ChunkId]) -> list[ChunkId]:
        return [chunk for chunk, is_here in zip(chunks, self._store.has(chunks), strict=True) if not is_here]

    def _state(self, job: _Job) -> WarmState:
        record = job.record
        return WarmState(
            id=job.id,
            image=job.image,
            stage=job.stage,
            chain_id=record.chain_id if record else "",
            manifest_digest=record.manifest_digest if record else "",
            layers=self._layers(job, record) if record else (),
            seconds=round((job.ended or time.monotonic()) - job.started, 3),
            error=job.error,
            remedy=job.remedy,
        )

    def _layers(self, job: _Job, record: ImageRecord) -> tuple[LayerProgress, ...]:
        layers = []
        for diff_id, digest in zip(record.diff_ids, record.layer_digests, strict=True):
            layer = self._ingest.layers.progress(diff_id, digest)
            if diff_id in job.ready_before and layer.stage == "ready":
                layer = msgspec.structs.replace(layer, new_bytes=0)  # new to the store earlier, not by this job
            layers.append(layer)
        return tuple(layers)

    def _forget_oldest(self) -> None:
        ended = [job.id for job in self._jobs.values() if job.ended is not None]
        for job_id in ended[: max(0, len(self._jobs) - _KEPT_JOBS)]:
            del self._jobs[job_id]
