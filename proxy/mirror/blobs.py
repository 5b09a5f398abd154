"""Blobs for readers: complete from disk, or followed while they come from upstream."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from fastpull.cache.digest import Digest
from fastpull.cache.tables import Table
from fastpull.cache.tasks import Tasks
from fastpull.config.proxy import ProxySettings
from fastpull.proxy import metrics
from fastpull.proxy.errors import (
    BlobFillError,
    BlobStoreError,
    BlobStoreFullError,
    BlobUnknownError,
    MirrorError,
    UpstreamInvalidError,
)
from fastpull.proxy.mirror.blob_files import BlobFiles
from fastpull.proxy.mirror.blob_request import BlobSource, stat_blob
from fastpull.proxy.mirror.disk_errors import translated
from fastpull.proxy.mirror.fill import DigestMismatchError, Fill, finish
from fastpull.proxy.mirror.partial import Partial, PartialBusyError
from fastpull.proxy.mirror.recent import Recent
from fastpull.proxy.upstream.registry import Upstreams

__all__ = ["BlobHandle", "BlobSource", "Blobs", "FillProgress"]

log = logging.getLogger(__name__)

_DISK_THREADS = 8
_FULL_SECONDS = 15.0  # after the disk was full it is not tried again for so long


class BlobHandle(Protocol):
    """A blob that can be read, complete or growing. Valid inside of ``Blobs.open`` only."""

    digest: Digest
    size: int
    path: Path
    """Valid as long as the handle, and always the same file."""
    fd: int
    """Readable, of the same file; the handle's own."""

    @property
    def is_complete(self) -> bool:
        """All bytes are there and verified."""
        ...

    async def wait_available(self, offset: int) -> int:
        """Wait for bytes from 0 to behind ``offset``; return how many there are, from 0, without a hole.

        At ``offset == size`` return at once. The bytes are unverified. Raise ``BlobFillError``.
        """
        ...

    async def wait_readable(self, offset: int, *, unverified: bool = False) -> int:
        """Wait for the byte at ``offset``, have it fetched first, and return where the bytes there end.

        The last bytes of the blob come only when its digest is right, or with ``unverified`` at once.
        """
        ...

    async def wait_complete(self) -> Path:
        """Wait for all bytes and the right digest. Raise ``BlobFillError``."""
        ...


class _CompleteBlob:
    """A file."""

    is_complete = True

    def __init__(self, digest: Digest, size: int, path: Path, fd: int) -> None:
        self.digest = digest
        self.size = size
        self.path = path
        self.fd = fd

    async def wait_available(self, offset: int) -> int:  # noqa: ARG002 - as the Protocol has it
        return self.size

    async def wait_readable(self, offset: int, *, unverified: bool = False) -> int:  # noqa: ARG002
        return self.size

    async def wait_complete(self) -> Path:
        return self.path


class _GrowingBlob:
    """A reader of a fill."""

    def __init__(self, fill: Fill, done: asyncio.Future[None]) -> None:
        self.digest = fill.source.digest
        self.size = fill.sized.result()
        self.path = fill.partial.path
        self.fd = fill.partial.fd
        self._fill = fill
        self._done = done

    @property
    def is_complete(self) -> bool:
        return self._fill.is_verified

    async def wait_available(self, offset: int) -> int:
        if offset >= self.size:
            return self.size
        # Whoever reads from the front needs the first hole, wherever ``offset`` is.
        while (end := self._fill.available_from(0, unverified=True)) <= offset:
            await self._fill.wait_from(end, unverified=True)
        return end

    async def wait_readable(self, offset: int, *, unverified: bool = False) -> int:
        if offset >= self.size:
            return self.size
        return await self._fill.wait_from(offset, unverified=unverified)

    async def wait_complete(self) -> Path:
        try:
            await asyncio.shield(self._done)
        except MirrorError as exc:
            raise BlobFillError(self.digest, exc) from exc
        return self.path


@dataclass(frozen=True, slots=True)
class FillProgress:
    """A fill, as of now. ``size`` is ``None`` until upstream tells."""

    source: BlobSource
    bytes: int
    size: int | None
    readers: int
    seconds: float


class _Running:
    """A fill, its readers, and the end of both."""

    def __init__(self, fill: Fill) -> None:
        self.fill = fill
        self.started = time.monotonic()
        self.readers = 0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.done.add_done_callback(lambda done: None if done.cancelled() else done.exception() and None)
        self.task: asyncio.Task[None] | None = None
        self.leave: asyncio.TimerHandle | None = None

    def close_if_unused(self) -> None:
        if not self.readers and self.done.done():
            self.fill.partial.close()


class Blobs:
    """Opens blobs. One fill for each blob that is not here, whoever asks and however many."""

    def __init__(self, settings: ProxySettings, upstreams: Upstreams, sizes: Table[int], tasks: Tasks) -> None:
        self.files = BlobFiles(settings.data_dir, int(settings.cache.blob_bytes), sizes)
        self._settings = settings.mirror
        self._upstreams = upstreams
        self._tasks = tasks
        self._threads = ThreadPoolExecutor(_DISK_THREADS, thread_name_prefix="blob-disk")
        self._running: dict[Digest, _Running] = {}
        self._wrong: Recent[Digest, MirrorError] = Recent(settings.mirror.mismatch_seconds)
        self._absent: Recent[BlobSource, MirrorError] = Recent(settings.mirror.negative_ttl_seconds)
        self._full_until = 0.0

    async def __aenter__(self) -> Self:
        with translated(self.files.fills):
            await asyncio.get_running_loop().run_in_executor(self._threads, self.files.scan)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop all fills; what they brought stays for the next start."""
        tasks = [running.task for running in self._running.values() if running.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await asyncio.to_thread(self._threads.shutdown)

    def has(self, digest: Digest) -> bool:
        """Is the blob here, complete and verified?"""
        return self.files.size(digest) is not None

    def pin(self, digest: Digest) -> None:
        """Keep the blob from eviction, until ``unpin`` was called as often. Not remembered over a restart."""
        self.files.pin(digest)

    def unpin(self, digest: Digest) -> None:
        self.files.unpin(digest)

    def drop(self, digest: Digest) -> int:
        """Remove the complete blob; return the bytes freed."""
        return self.files.drop(digest)

    @property
    def used_bytes(self) -> int:
        return self.files.used_bytes

    def is_filling(self, digest: Digest) -> bool:
        return digest in self._running

    def fills(self) -> list[FillProgress]:
        """What is on its way from upstream, the oldest first."""
        now = time.monotonic()
        return [
            FillProgress(
                running.fill.source,
                running.fill.partial.spans.total,
                running.fill.partial.size,
                running.readers,
                now - running.started,
            )
            for running in self._running.values()
        ]

    async def stat(self, source: BlobSource) -> int:
        """The size of a blob, without fetching it. Raise ``MirrorError``."""
        size = self.files.size(source.digest)
        if size is None and (running := self._running.get(source.digest)) is not None:
            size = running.fill.partial.size
        if size is not None:
            return size
        self._raise_known_failure(source)
        try:
            return await stat_blob(self._upstreams.get(source.upstream), source)
        except BlobUnknownError as exc:
            self._absent.put(source, exc)
            raise

    @asynccontextmanager
    async def open(self, source: BlobSource, *, first_offset: int = 0) -> AsyncIterator[BlobHandle]:
        """Open the blob: from disk, or join its fill, or start one. Leaving the context releases it.

        Returns when the size is known; a fill that starts asks for the bytes at ``first_offset`` first.
        Raise ``BlobUnknownError``, ``DeniedError``, ``ThrottledError``, ``UpstreamUnavailableError``,
        ``UpstreamInvalidError``, ``BlobStoreFullError`` (the blob can only be passed through), ``BlobStoreError``.
        """
        with self.files.in_use(source.digest):
            opened = self.files.open(source.digest)
            if opened is not None:
                fd, size = opened
                try:
                    yield _CompleteBlob(source.digest, size, self.files.path(source.digest), fd)
                finally:
                    os.close(fd)
                return
            running = await self._join(source, first_offset)
            try:
                yield _GrowingBlob(running.fill, running.done)
            finally:
                self._leave(running)

    async def _join(self, source: BlobSource, first_offset: int) -> _Running:
        """A fill whose size is known, with us among its readers."""
        while True:
            self._raise_known_failure(source)
            running = self._running.get(source.digest)
            if running is None:
                running = self._start(source, first_offset)  # no await up to here, so no second fill can start
            self._enter(running)
            try:
                await asyncio.shield(running.fill.sized)
            except MirrorError:
                self._leave(running)
                if running.fill.source == source:
                    raise
                # Another repository's or registry's refusal is not ours.
                await asyncio.wait([running.done])
            except BaseException:
                self._leave(running)
                raise
            else:
                return running

    def _raise_known_failure(self, source: BlobSource) -> None:
        if error := self._wrong.get(source.digest) or self._absent.get(source):
            raise error.with_traceback(None)  # it is raised to many, and would collect all their frames

    def _start(self, source: BlobSource, first_offset: int) -> _Running:
        if time.monotonic() < self._full_until:
            raise BlobStoreFullError(f"{self.files.fills} was full a moment ago")
        upstream = self._upstreams.get(source.upstream)
        try:
            with translated(self.files.fills / source.digest.hex):
                partial = Partial.open(self.files.fills, source.digest)
        except PartialBusyError as exc:
            raise BlobStoreError(f"another process fetches {source.digest}") from exc
        fill = Fill(
            source,
            upstream,
            partial,
            self._threads,
            self._settings,
            make_room=lambda size: self._make_room(source.digest, size),
            first_offset=first_offset,
        )
        running = self._running[source.digest] = _Running(fill)
        running.task = self._tasks.spawn(self._run(running), name=f"fill {source.digest.hex[:12]}")
        running.task.add_done_callback(lambda _: self._ended(running))
        return running

    async def _make_room(self, digest: Digest, size: int) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, self.files.make_room, digest, size)

    async def _run(self, running: _Running) -> None:
        """The fill's task. Its failure is told to the readers and logged here, not raised."""
        fill = running.fill
        started = time.monotonic()
        outcome = "failed"
        metrics.FILLS_RUNNING.inc()
        try:
            with self.files.in_use(fill.source.digest):
                await fill.run()
                with translated(fill.partial.path):
                    loop = asyncio.get_running_loop()
                    await finish(loop.run_in_executor(self._threads, self.files.commit, fill.partial))
            self.files.committed(fill.source.digest, fill.sized.result())
            running.done.set_result(None)
            outcome = "done"
        except MirrorError as exc:
            log.warning("blob %s of %s/%s: %s", fill.source.digest, fill.source.upstream, fill.source.repository, exc)
            self._note_failure(fill, exc)
            running.done.set_exception(exc)
        except asyncio.CancelledError:
            outcome = "abandoned"
            running.done.set_exception(BlobFillError(fill.source.digest, "the transfer was stopped"))
            raise
        finally:
            metrics.FILLS_RUNNING.dec()
            metrics.FILL_SECONDS.labels(outcome).observe(time.monotonic() - started)

    def _note_failure(self, fill: Fill, exc: MirrorError) -> None:
        if isinstance(exc, DigestMismatchError):
            self._wrong.put(fill.source.digest, exc)
        elif isinstance(exc, BlobUnknownError):
            self._absent.put(fill.source, exc)
        elif isinstance(exc, BlobStoreFullError):
            self._full_until = time.monotonic() + _FULL_SECONDS
        if isinstance(exc, UpstreamInvalidError | BlobStoreFullError | BlobStoreError) or not fill.partial.spans.total:
            fill.partial.discard()
            self.files.forget(fill.source.digest)

    def _ended(self, running: _Running) -> None:
        """After the task, even one that was cancelled before its first step."""
        if not running.done.done():
            running.done.set_exception(BlobFillError(running.fill.source.digest, "the transfer was stopped"))
            running.fill.stop()
        if running.leave is not None:
            running.leave.cancel()
        del self._running[running.fill.source.digest]
        running.close_if_unused()

    def _enter(self, running: _Running) -> None:
        running.readers += 1
        if running.leave is not None:
            running.leave.cancel()
            running.leave = None

    def _leave(self, running: _Running) -> None:
        running.readers -= 1
        if running.readers or running.task is None:
            return
        if running.done.done():
            if running.task.done():
                running.close_if_unused()
            return
        running.leave = asyncio.get_running_loop().call_later(self._settings.linger_seconds, self._abandon, running)

    def _abandon(self, running: _Running) -> None:
        """Nobody has read for a while. What is nearly there is completed; the rest waits for the next reader."""
        remaining = running.fill.remaining_bytes
        is_nearly_done = remaining is not None and remaining <= self._settings.range_bytes
        if not running.readers and not is_nearly_done and running.task is not None:
            running.task.cancel()
