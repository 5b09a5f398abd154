"""Where fetched chunks stay: in memory at once, in the node's store a moment later."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

from fastpull.cache.digest import ChunkId
from fastpull.cache.errors import StoreFullError
from fastpull.cache.store import ChunkStore, Encoding, StoredChunk
from fastpull.cache.tasks import Tasks
from fastpull.fuse_client.fetch.counters import FetchCounters

log = logging.getLogger(__name__)

WRITE_BATCH_BYTES = 8 << 20
PENDING_BYTES = 32 << 20  # decoded, not yet written: above it prefetch pauses, and demand goes uncached
UNCACHED_BYTES = 16 << 20  # kept in memory of what the store did not take
PAUSE_AFTER_FAILURE_SECONDS = 5.0


class RunsInWriter(Protocol):
    """``cache.writer.Writer``: runs a function on the thread that owns all writes of the store."""

    def run(self, function: Callable[..., int], /, *args: object) -> Awaitable[int]: ...


class Keeper:
    """Holds decoded chunks until the store has them, so that nobody waits for a disk write.

    A store that is full or broken costs speed, never a read: its chunks are served from a small memory
    cache and fetched again later. One log line says when that begins and one when it ends.
    """

    def __init__(self, store: ChunkStore, writer: RunsInWriter, tasks: Tasks, counters: FetchCounters) -> None:
        self.failure = ""  # why chunks are not stored at the moment
        self.on_room: Callable[[], None] = lambda: None  # called when the store has taken a batch
        self._store = store
        self._writer = writer
        self._tasks = tasks
        self._counters = counters
        self._pending: OrderedDict[ChunkId, bytes] = OrderedDict()
        self._pending_bytes = 0
        self._uncached: OrderedDict[ChunkId, bytes] = OrderedDict()
        self._uncached_bytes = 0
        self._writing: asyncio.Task[None] | None = None
        self._paused_until = 0.0

    @property
    def is_busy(self) -> bool:
        """More is waiting for the disk than it should; do not fetch ahead."""
        return self._pending_bytes >= PENDING_BYTES

    def get(self, chunk: ChunkId) -> bytes | None:
        """A chunk that is in memory. One that the store did not take is offered to it again, now and then."""
        data = self._pending.get(chunk)
        if data is None and (data := self._uncached.get(chunk)) is not None:
            self._uncached.move_to_end(chunk)
            if time.monotonic() >= self._paused_until:
                self._uncached_bytes -= len(self._uncached.pop(chunk))
                self.keep([(chunk, data)])
        return data

    def keep(self, chunks: Iterable[tuple[ChunkId, bytes]]) -> None:
        """Take decoded, verified chunks. Returns at once; the store has them some milliseconds later."""
        storing = time.monotonic() >= self._paused_until
        for chunk, data in chunks:
            if storing and self._pending_bytes < 2 * PENDING_BYTES:
                if chunk not in self._pending:
                    self._pending[chunk] = data
                    self._pending_bytes += len(data)
            else:
                self._remember(chunk, data)
        if self._pending and (self._writing is None or self._writing.done()):
            self._writing = self._tasks.spawn(self._write(), name="store chunks")

    async def flush(self) -> None:
        """Wait until everything that was taken so far is stored, or is known not to be."""
        while self._writing is not None and not self._writing.done():
            await asyncio.wait([self._writing])

    async def _write(self) -> None:
        while self._pending:
            batch: list[tuple[ChunkId, StoredChunk]] = []
            size = 0
            for chunk, data in self._pending.items():
                batch.append((chunk, StoredChunk(Encoding.RAW, len(data), data)))
                size += len(data)
                if size >= WRITE_BATCH_BYTES:
                    break
            try:
                await self._writer.run(self._store.put_many, batch)
            except StoreFullError as exc:
                self._failed(f"the node cache is full: {exc}")
            except Exception as exc:  # noqa: BLE001 - a broken disk must not end the service; the log has it
                self._failed(f"the node cache can not be written: {exc!r}")
            else:
                self._succeeded()
            for chunk, stored in batch:
                data = self._pending.pop(chunk)
                self._pending_bytes -= stored.size
                if self.failure:
                    self._remember(chunk, data)
            self.on_room()

    def _failed(self, reason: str) -> None:
        self._counters.store_failures += 1
        self._paused_until = time.monotonic() + PAUSE_AFTER_FAILURE_SECONDS
        if not self.failure:
            log.error("%s; chunks are served uncached until it takes bytes again", reason)
        self.failure = reason

    def _succeeded(self) -> None:
        if self.failure:
            log.warning("the node cache takes bytes again")
        self.failure = ""

    def _remember(self, chunk: ChunkId, data: bytes) -> None:
        self._counters.uncached_chunks += 1
        if (old := self._uncached.pop(chunk, None)) is not None:
            self._uncached_bytes -= len(old)
        self._uncached[chunk] = data
        self._uncached_bytes += len(data)
        while self._uncached_bytes > UNCACHED_BYTES:
            _, gone = self._uncached.popitem(last=False)
            self._uncached_bytes -= len(gone)
