"""Layers: from a blob somewhere upstream to a committed index, once for all images that hold it."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from fastpull.cache.digest import Digest
from fastpull.cache.errors import CacheError
from fastpull.cache.single_flight import SingleFlight
from fastpull.cache.tasks import Tasks
from fastpull.cache.wire import LayerProgress, LayerStage
from fastpull.cache.writer import Writer
from fastpull.image.errors import ImageError, IndexFormatError, LayerDigestError
from fastpull.proxy import metrics
from fastpull.proxy.errors import MirrorError
from fastpull.proxy.ingest.changes import Changes
from fastpull.proxy.ingest.failures import Failure, Failures, LayerFailedError
from fastpull.proxy.ingest.figures import LayerFigures, figures_of
from fastpull.proxy.ingest.job import LayerJob
from fastpull.proxy.ingest.state import IngestTables, LayerRecord, LayerSource, found
from fastpull.proxy.mirror.blobs import BlobHandle, BlobSource

log = logging.getLogger(__name__)

_MOST_SOURCES = 8


class OpenBlobs(Protocol):
    """The part of the mirror that is needed here."""

    def open(self, source: BlobSource) -> AbstractAsyncContextManager[BlobHandle]: ...

    def drop(self, digest: Digest) -> int: ...


class IngestPool(Protocol):
    """The part of ``LayerPool`` that is needed here."""

    async def ingest(
        self,
        job: LayerJob,
        *,
        available: Callable[[int], Awaitable[int]],
        progress: Callable[[int], None],
    ) -> bytes: ...


class _RottenBlobError(LayerDigestError):
    """A blob that was verified when it came has other bytes now."""


@dataclass(slots=True)
class _Run:
    """A layer at work."""

    source: LayerSource
    stage: LayerStage = "waiting"
    fetched_bytes: int = 0
    indexed_bytes: int = 0

    def advance(self, blob_bytes: int) -> None:
        self.stage = "indexing"
        self.indexed_bytes = blob_bytes


class Layers:
    """Ingests layers and knows how far each is.

    Invariant: a layer counts as ready exactly when its ``LayerRecord`` says so, and that is written, together with
    the index, after the blob's digest and the diffID were right and the chunks were durable.
    """

    def __init__(
        self,
        tables: IngestTables,
        writer: Writer,
        blobs: OpenBlobs,
        pool: IngestPool,
        tasks: Tasks,
        changes: Changes,
        *,
        at_once: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tables = tables
        self._writer = writer
        self._blobs = blobs
        self._pool = pool
        self._changes = changes
        self._clock = clock
        self._slots = asyncio.Semaphore(at_once)
        self._flights: SingleFlight[str, None] = SingleFlight(tasks)
        self._running: dict[str, _Run] = {}
        self._failures = Failures(clock)

    async def remember(self, sources: Mapping[str, LayerSource]) -> None:
        """Note, by diffID, where an image's layers can be had."""
        await self._writer.run(self._add_sources, sources)

    def record(self, diff_id: str) -> LayerRecord | None:
        return found(self._tables.layers, diff_id)

    def is_ready(self, diff_id: str) -> bool:
        record = found(self._tables.layers, diff_id)
        return record is not None and record.is_indexed

    def is_running(self, diff_id: str) -> bool:
        return diff_id in self._flights

    def failure(self, diff_id: str) -> Failure | None:
        """The last failure, as long as it is not worth another attempt."""
        return self._failures.current(diff_id)

    def running(self) -> list[LayerProgress]:
        return [self.progress(diff_id) for diff_id in list(self._running)]

    def failed(self) -> list[LayerProgress]:
        return [self.progress(diff_id) for diff_id in self._failures if diff_id not in self._running]

    def progress(self, diff_id: str, digest: str = "") -> LayerProgress:
        """How far the layer is; ``digest`` picks the blob that the asker's image names."""
        record = found(self._tables.layers, diff_id)
        if record is None:
            return LayerProgress(digest=digest, diff_id=diff_id)
        run = self._running.get(diff_id)
        sources = [source for source in record.sources if source.digest == digest] or list(record.sources)
        source = run.source if run is not None and not digest else sources[0]
        progress = LayerProgress(
            digest=source.digest, diff_id=diff_id, media_type=source.media_type, blob_bytes=source.blob_bytes
        )
        if run is not None:
            return msgspec.structs.replace(
                progress,
                stage=run.stage,
                fetched_bytes=min(run.fetched_bytes, source.blob_bytes),
                indexed_bytes=min(run.indexed_bytes, source.blob_bytes),
            )
        if record.is_indexed:
            return msgspec.structs.replace(
                progress,
                stage="ready",
                fetched_bytes=source.blob_bytes,
                indexed_bytes=source.blob_bytes,
                content_bytes=record.content_bytes,
                new_bytes=record.new_bytes,
                files=record.files,
            )
        if (failure := self._failures.last(diff_id)) is not None:
            return msgspec.structs.replace(progress, stage="failed", error=failure.error)
        return progress

    async def ensure(self, diff_id: str) -> None:
        """Return when the layer is ready. Raise ``LayerFailedError`` when it can not be made so, now or recently."""
        if not self.is_ready(diff_id):
            await self.restore(diff_id)

    async def restore(self, diff_id: str) -> None:
        """Ingest the layer even though its index is there: some of its chunks are not. Raises as ``ensure``."""
        if diff_id not in self._flights and (failure := self.failure(diff_id)) is not None:
            raise LayerFailedError(diff_id, failure)
        await self._flights.get(diff_id, lambda: self._ingest(diff_id))

    async def index(self, diff_id: str) -> bytes:
        """The serialised index. Raise ``IndexFormatError`` when it is not there, or damaged: ``ensure`` again."""
        return await asyncio.to_thread(self._load_index, diff_id)

    async def forget_index(self, diff_id: str) -> None:
        """The layer is not ready any more; where it can be had stays known."""
        await self._writer.run(self._drop_index, diff_id)

    async def forget(self, diff_id: str) -> None:
        self._failures.forget(diff_id)
        await self._writer.run(self._drop_layer, diff_id)

    async def _ingest(self, diff_id: str) -> None:
        """Try each known source once, the latest first. Failures end in ``LayerFailedError``, remembered."""
        tried: set[LayerSource] = set()
        failure: Failure | None = None
        cause: Exception | None = None
        async with self._slots:
            while (source := self._untried(diff_id, tried)) is not None:
                tried.add(source)
                run = self._running[diff_id] = _Run(source)
                try:
                    with metrics.INGESTS_RUNNING.track_inprogress():
                        await self._ingest_from(diff_id, source, run)
                except (ImageError, CacheError, MirrorError, OSError) as exc:
                    cause = exc
                    log.warning("layer %s of %s/%s: %s", source.digest, source.upstream, source.repository, exc)
                    failure = Failure.of(f"layer {source.digest}", exc, self._clock())
                else:
                    self._failures.forget(diff_id)
                    metrics.LAYERS_INGESTED.labels("done").inc()
                    return
                finally:
                    del self._running[diff_id]
                    self._changes.notify()
        if failure is None:
            failure = Failure(
                f"layer {diff_id}: no registry is known to hold it", "pull the image again", self._clock()
            )
        self._failures.put(diff_id, failure)
        metrics.LAYERS_INGESTED.labels("failed").inc()
        self._changes.notify()
        raise LayerFailedError(diff_id, failure) from cause

    def _untried(self, diff_id: str, tried: set[LayerSource]) -> LayerSource | None:
        record = found(self._tables.layers, diff_id)  # anew each time: another image may just have named one more
        return next((s for s in record.sources if s not in tried), None) if record is not None else None

    async def _ingest_from(self, diff_id: str, source: LayerSource, run: _Run) -> None:
        try:
            await self._ingest_blob(diff_id, source, run)
        except _RottenBlobError as exc:
            log.warning("%s: it is fetched again", exc)
            self._blobs.drop(Digest.parse(source.digest))
            await self._ingest_blob(diff_id, source, run)

    async def _ingest_blob(self, diff_id: str, source: LayerSource, run: _Run) -> None:
        started = self._clock()
        digest = Digest.parse(source.digest)
        async with self._blobs.open(BlobSource(source.upstream, source.repository, digest, source.blob_bytes)) as blob:
            run.stage = "fetching"
            if blob.size != source.blob_bytes:
                raise LayerDigestError(f"the blob has {blob.size} bytes, the manifest says {source.blob_bytes}")

            async def available(offset: int) -> int:
                run.fetched_bytes = await blob.wait_available(offset)
                return run.fetched_bytes

            job = LayerJob(
                path=blob.path, blob_bytes=blob.size, media_type=source.media_type, diff_id=Digest.parse(diff_id)
            )
            was_complete = blob.is_complete
            try:
                index = await self._pool.ingest(job, available=available, progress=run.advance)
            except ImageError as exc:
                if was_complete and await asyncio.to_thread(_sha256_of, blob.path) != digest.hex:
                    raise _RottenBlobError(f"the blob {digest} on our disk is damaged ({exc})") from exc
                raise
            await blob.wait_complete()  # the blob's own digest: the mirror vouches for it
        figures = await asyncio.to_thread(figures_of, index)
        seconds = max(self._clock() - started, 0.001)  # zero would mean: never ingested
        await self._writer.run(self._commit, diff_id, source, index, figures, seconds)
        metrics.LAYER_SECONDS.observe(seconds)
        metrics.INGESTED_BYTES.inc(figures.content_bytes)
        metrics.INGESTED_NEW_BYTES.inc(figures.new_bytes)
        log.info(
            "layer %s ready: %d files, %d bytes, %d new, %.2f s",
            source.digest,
            figures.files,
            figures.content_bytes,
            figures.new_bytes,
            seconds,
        )

    # On the writer's thread, so that two changes of one record never overlap.

    def _add_sources(self, sources: Mapping[str, LayerSource]) -> None:
        with self._tables.database.write():
            for diff_id, source in sources.items():
                record = found(self._tables.layers, diff_id) or LayerRecord(diff_id=diff_id, sources=())
                latest_first = (source, *(known for known in record.sources if known != source))[:_MOST_SOURCES]
                if latest_first != record.sources:
                    self._tables.layers.put(diff_id, msgspec.structs.replace(record, sources=latest_first))

    def _commit(self, diff_id: str, source: LayerSource, index: bytes, figures: LayerFigures, seconds: float) -> None:
        record = found(self._tables.layers, diff_id) or LayerRecord(diff_id=diff_id, sources=(source,))
        if not record.seconds:  # a later ingest finds nothing new: the first one's figures mean something
            record = msgspec.structs.replace(record, new_bytes=figures.new_bytes, seconds=seconds)
        record = msgspec.structs.replace(
            record, is_indexed=True, content_bytes=figures.content_bytes, files=figures.files
        )
        with self._tables.database.write():
            self._tables.indexes.put(diff_id, index)
            self._tables.layers.put(diff_id, record)

    def _drop_index(self, diff_id: str) -> None:
        record = found(self._tables.layers, diff_id)
        with self._tables.database.write():
            if record is not None:
                self._tables.layers.put(diff_id, msgspec.structs.replace(record, is_indexed=False))
            self._tables.indexes.delete(diff_id)

    def _drop_layer(self, diff_id: str) -> None:
        with self._tables.database.write():
            self._tables.layers.delete(diff_id)
            self._tables.indexes.delete(diff_id)

    def _load_index(self, diff_id: str) -> bytes:
        index = found(self._tables.indexes, diff_id)
        if index is None:
            raise IndexFormatError(f"the index of layer {diff_id} is not there")
        return index


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
