"""The worker processes: started when there is work, ended when there has been none for a while."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from fastpull.cache.tasks import Tasks
from fastpull.config.proxy import ProxySettings
from fastpull.image.chain import BuiltChain
from fastpull.proxy.ingest.errors import WorkerDiedError, WorkerFailedError
from fastpull.proxy.ingest.job import LayerJob
from fastpull.proxy.ingest.messages import Available, BuildChain, Cancel, IngestLayer, Setup
from fastpull.proxy.ingest.process import Call, WorkerProcess

__all__ = ["LayerJob", "LayerPool", "WorkerDiedError", "WorkerFailedError"]  # what a caller of the pool needs

_LAYERS_PER_WORKER = 2  # one may wait for its download while the other computes
_IDLE_SECONDS = 60.0
_MAX_COMPRESSORS = 4  # threads; more than this outrun the one thread that reads the tar


class LayerPool:
    """Ingests layers and builds chains in processes of its own. An async context manager; closing it ends them.

    Work goes to the worker that has the least left to do. A worker that dies takes only its own requests with it, and
    the next request starts another.
    """

    def __init__(self, settings: ProxySettings, store_path: Path, *, idle_seconds: float = _IDLE_SECONDS) -> None:
        ingest = settings.ingest
        cores = len(os.sched_getaffinity(0))
        self._max_workers = ingest.workers or cores
        self._idle_seconds = idle_seconds
        self._stall_seconds = ingest.stall_seconds
        self._setup = Setup(
            store=str(store_path),
            quota_bytes=int(settings.cache.chunk_bytes),
            zstd_level=ingest.zstd_level,
            compressors=min(cores, _MAX_COMPRESSORS),
            max_entries=ingest.max_entries,
            max_path_bytes=ingest.max_path_bytes,
            max_layer_bytes=int(ingest.max_layer_bytes),
            max_ratio=ingest.max_ratio,
        )
        self._workers: list[WorkerProcess] = []
        self._starting = asyncio.Lock()
        self._slots = asyncio.Semaphore(self._max_workers * _LAYERS_PER_WORKER)
        self._tasks = Tasks()
        self._retirements: dict[WorkerProcess, asyncio.TimerHandle] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        for timer in self._retirements.values():
            timer.cancel()
        workers, self._workers = self._workers, []
        await asyncio.gather(*(worker.aclose() for worker in workers))
        await self._tasks.aclose()

    @property
    def pids(self) -> list[int]:
        """The living workers."""
        return [worker.pid for worker in self._workers if worker.is_alive]

    async def ingest(
        self, job: LayerJob, *, available: Callable[[int], Awaitable[int]], progress: Callable[[int], None]
    ) -> bytes:
        """Index one layer. Return ``LayerIndex.to_bytes()``; its chunks are durable in the store by then.

        ``available(offset)`` waits until more than ``offset`` leading bytes of the file may be read and returns
        how many; what it raises ends the job and is raised here. ``progress`` gets the bytes of the blob
        consumed so far, a few times a second. Raise the ``ImageError`` or ``CacheError`` that the worker met,
        ``WorkerDiedError`` (also for one that got nowhere), or ``WorkerFailedError``. Cancellation stops the job in
        the worker.
        """
        ready = await available(0) if job.blob_bytes else 0  # before a slot: others may have bytes to work on
        async with self._slots:
            worker = await self._worker()
            call = worker.call(lambda id_: _request(id_, job, ready), progress, total_bytes=job.blob_bytes)
            call.feed(ready)
            feeding = self._tasks.spawn(_feed(worker, call, job, ready, available), name=f"feed {job.path.name}")
            try:
                return await call.answer
            finally:
                feeding.cancel()
                if worker.finish(call):
                    worker.send(Cancel(call.id))
                self._rest(worker)

    async def build_chain(self, indexes: Sequence[bytes]) -> BuiltChain:
        """``image.chain.build_chain`` of serialised layer indexes, lowest first, in a worker.

        Raise the ``ImageError`` that it raises, ``WorkerDiedError`` or ``WorkerFailedError``.
        """
        worker = await self._worker()
        call = worker.call(lambda id_: BuildChain(id_, list(indexes)), _ignore)
        try:
            return msgspec.msgpack.decode(await call.answer, type=BuiltChain)
        finally:
            worker.finish(call)
            self._rest(worker)

    async def _worker(self) -> WorkerProcess:
        """The worker to ask next. Ask it without another ``await``, or two requests find it idle."""
        async with self._starting:
            self._workers = [worker for worker in self._workers if worker.is_alive]
            worker = min(self._workers, key=lambda worker: worker.backlog, default=None)
            if worker is None or (worker.load and len(self._workers) < self._max_workers):
                worker = await WorkerProcess.start(self._setup, self._tasks, stall_seconds=self._stall_seconds)
                self._workers.append(worker)
            if (timer := self._retirements.pop(worker, None)) is not None:
                timer.cancel()
            return worker

    def _rest(self, worker: WorkerProcess) -> None:
        """Let a worker go when it stays idle: a process takes some 50 MB."""
        if worker in self._workers and not worker.load and worker not in self._retirements:
            loop = asyncio.get_running_loop()
            self._retirements[worker] = loop.call_later(self._idle_seconds, self._retire, worker)

    def _retire(self, worker: WorkerProcess) -> None:
        del self._retirements[worker]
        if worker in self._workers and not worker.load:
            self._workers.remove(worker)
            _ = self._tasks.spawn(worker.aclose(), name=f"end of idle worker {worker.pid}")


async def _feed(
    worker: WorkerProcess, call: Call, job: LayerJob, ready: int, available: Callable[[int], Awaitable[int]]
) -> None:
    """Tell the worker how far the file may be read, until it is complete."""
    try:
        while ready < job.blob_bytes:
            ready = await available(ready)
            call.feed(ready)
            worker.send(Available(call.id, ready))
    except Exception as exc:  # noqa: BLE001 - raised to whoever waits for the layer
        call.fail(exc)


def _request(id_: int, job: LayerJob, available: int) -> IngestLayer:
    return IngestLayer(
        id_, str(job.path), job.blob_bytes, available, job.media_type, str(job.diff_id), str(job.verify_blob or "")
    )


def _ignore(_consumed: int) -> None:
    pass
