"""Carries out what ``queue.py`` decides: requests, decoding in threads, delivery, retries."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Protocol

from fastpull.cache.codec import decode
from fastpull.cache.digest import ChunkId, Digest
from fastpull.cache.errors import CacheError
from fastpull.cache.store import StoredChunk
from fastpull.cache.tasks import Tasks
from fastpull.fuse_client.errors import ChunkUnavailableError, ProxyError
from fastpull.fuse_client.fetch.backoff import backoff
from fastpull.fuse_client.fetch.client import Received
from fastpull.fuse_client.fetch.counters import FetchCounters
from fastpull.fuse_client.fetch.endpoints import Endpoints
from fastpull.fuse_client.fetch.keeper import Keeper
from fastpull.fuse_client.fetch.queue import Batch, FetchQueue, Lane, Want
from fastpull.fuse_client.fetch.waited import Waited
from fastpull.fuse_client.fetch.window import WindowSize

log = logging.getLogger(__name__)

# Compressed bytes that are decoded on the event loop: below this the way through a thread takes longer.
INLINE_BYTES = 32 * 1024


class ChunkSource(Protocol):
    """``ProxyClient``, as far as the fetcher needs it."""

    @property
    def endpoints(self) -> Endpoints: ...

    def chunks(self, chain: Digest, wanted: Sequence[ChunkId], attempt: int = 0) -> AsyncGenerator[Received]: ...


class _Read:
    """A reader that waits for chunks. Its future is done when all are here, or the first has failed."""

    __slots__ = ("begun", "chunks", "done", "missing", "waited")

    def __init__(self, missing: set[ChunkId], done: asyncio.Future[None], begun: float) -> None:
        self.missing = missing
        self.chunks: dict[ChunkId, bytes] = {}
        self.done = done
        self.begun = begun
        self.waited = Waited()


class Fetcher:
    """Gets chunks for readers and for prefetch, through one scheduler.

    A chunk is verified before anybody sees it. Readers get it from memory; it is stored behind their back.
    """

    def __init__(
        self,
        source: ChunkSource,
        keeper: Keeper,
        queue: FetchQueue,
        tasks: Tasks,
        threads: Executor,
        counters: FetchCounters,
        *,
        retry_seconds: float,
    ) -> None:
        self.counters = counters
        self._source = source
        self._keeper = keeper
        self._queue = queue
        self._tasks = tasks
        self._threads = threads
        self._retry_seconds = retry_seconds
        self._window = WindowSize()
        self._reads: dict[ChunkId, list[_Read]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._room = asyncio.Event()
        self._last_error = "no answer yet"
        self._closed = False
        self.on_arrival: Callable[[Digest, ChunkId, Lane, int, int], None] = _nobody
        keeper.on_room = self._pump

    # -- reading -------------------------------------------------------------------------------------

    @property
    def window_bytes(self) -> int:
        """How much is worth taking along with what a reader waits for."""
        return self._window.bytes

    async def get(
        self, chain: Digest, wants: Sequence[Want], window: Iterable[Want] = ()
    ) -> tuple[Mapping[ChunkId, bytes], Waited]:
        """Return the verified bytes of all ``wants``, and what they waited for.

        Ask only for what the store lacks. Retries until ``fetch.retry_seconds`` are over, then raises
        ``ChunkUnavailableError``. Cancelling takes back only this read.
        """
        here: dict[ChunkId, bytes] = {}
        missing: dict[ChunkId, Want] = {}
        for want in wants:
            if (data := self._keeper.get(want.chunk)) is not None:
                here[want.chunk] = data
            else:
                missing[want.chunk] = want
        if not missing:
            return here, Waited()
        loop = asyncio.get_running_loop()
        read = _Read(set(missing), loop.create_future(), time.monotonic())
        for chunk in missing:
            self._reads.setdefault(chunk, []).append(read)
        self._queue.demand(chain, missing.values(), (w for w in window if self._keeper.get(w.chunk) is None))
        self._pump()
        try:
            async with asyncio.timeout(self._retry_seconds):
                await read.done
        except TimeoutError:
            self.counters.failed_reads += 1
            chunk = next(iter(read.missing))
            raise ChunkUnavailableError(chunk, self._retry_seconds, self._last_error) from None
        finally:
            for chunk in read.missing:
                self._leave(chunk, read)
        self.counters.waits += 1
        self.counters.waited_seconds += time.monotonic() - read.begun
        return here | read.chunks, read.waited

    def _leave(self, chunk: ChunkId, read: _Read) -> None:
        reads = self._reads[chunk]
        reads.remove(read)
        if not reads:
            del self._reads[chunk]
        self._queue.leave(chunk)

    # -- prefetch ------------------------------------------------------------------------------------

    async def prefetch(self, chain: Digest, lane: Lane, wants: Sequence[Want]) -> None:
        """Queue chunks for fetching when no reader needs the connections; return when all are queued.

        Ask only for what the store lacks. A chunk that fails several times is left out without a word: a
        reader that needs it will ask again.
        """
        at = 0
        while at < len(wants):
            self._room.clear()
            taken = self._queue.offer(chain, lane, wants[at:])
            at += taken
            if taken:
                self._pump()
            if at < len(wants):
                await self._room.wait()

    async def idle(self, chain: Digest) -> None:
        """Wait until nothing of this chain is queued or on its way."""
        while any(flight.chain == chain for flight in self._queue.flights()):
            self._room.clear()
            await self._room.wait()

    def release(self, chain: Digest) -> None:
        """Forget the prefetch of a chain."""
        self._queue.release(chain)
        self._room.set()

    # -- the machinery -------------------------------------------------------------------------------

    def wake(self) -> None:
        """A proxy is back: try at once what waits for a retry."""
        self._queue.wake()
        self._pump()

    def close(self) -> None:
        """Stop asking. Reads that still wait end with their own time limit, or with the loop."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _pump(self) -> None:
        """Start every batch that may start now. Cheap when there is none; called after every change."""
        if self._closed or not self._source.endpoints.any_up:
            return  # the probe calls wake()
        now = time.monotonic()
        while (batch := self._queue.take(now, prefetch=not self._keeper.is_busy)) is not None:
            self.counters.requests[batch.lane] += 1
            _ = self._tasks.spawn(self._run(batch), name=f"fetch for {batch.chain}")
        due_at = self._queue.next_due()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due_at is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due_at - now), self._pump)

    async def _run(self, batch: Batch) -> None:
        """One request. However it ends, its connection is given back and what did not come is tried again."""
        attempt = batch.attempt
        try:
            await self._receive(batch, attempt)
        except ProxyError as exc:
            self._last_error = str(exc)
            log.info("a batch for %s ended with %d chunks missing: %s", batch.chain, len(batch.flights), exc)
        finally:
            if batch.flights:
                self.counters.retries += 1
            self._queue.ended(batch, time.monotonic() + backoff(attempt + 1))
            self._room.set()
            self._pump()

    async def _receive(self, batch: Batch, attempt: int) -> None:
        """Decode and deliver while the rest is still on the wire."""
        decoding: set[asyncio.Task[None]] = set()
        first = last = 0.0
        size = 0  # of what came after the first group
        try:
            async with contextlib.aclosing(self._source.chunks(batch.chain, batch.chunks, attempt)) as groups:
                async for group in groups:
                    last = time.monotonic()
                    if first:
                        size += sum(stored.size for _, stored in group if stored)
                    first = first or last
                    work = self._deliver(batch, group, last)
                    decoding.add(self._tasks.spawn(work, name="decode chunks"))
            self._window.received(size, last - first, len(self._queue.batches))
        finally:
            if decoding:
                await asyncio.wait(decoding)

    async def _deliver(self, batch: Batch, group: Received, received_at: float) -> None:
        if sum(len(stored.data) for _, stored in group if stored) <= INLINE_BYTES:
            decoded = decode_all(group)
        else:
            decoded = await asyncio.get_running_loop().run_in_executor(self._threads, decode_all, group)
        good: list[tuple[ChunkId, bytes]] = []
        for (chunk, stored), data in zip(group, decoded, strict=True):
            if stored is None:
                self.counters.missing_chunks += 1
                self._last_error = "the proxy does not have it"
            elif isinstance(data, bytes):
                good.append((chunk, data))
                self._arrived(batch, chunk, stored, data, received_at)
            else:
                self.counters.corrupt_chunks += 1
                self._last_error = str(data)
                log.warning("received for %s: %s; it is fetched again", batch.chain, data)
        self._keeper.keep(good)

    def _arrived(self, batch: Batch, chunk: ChunkId, stored: StoredChunk, data: bytes, received_at: float) -> None:
        flight = self._queue.arrived(batch, chunk)
        self.counters.chunks[flight.lane] += 1
        self.counters.bytes_received[flight.lane] += len(stored.data)
        self.counters.bytes_content[flight.lane] += len(data)
        self.on_arrival(flight.chain, chunk, flight.lane, len(stored.data), len(data))
        for read in self._reads.pop(chunk, ()):
            read.chunks[chunk] = data
            read.missing.discard(chunk)
            if not read.missing and not read.done.done():
                asked_at = max(flight.started_at, read.begun)  # it may have joined a request under way
                read.waited = Waited(
                    queue=asked_at - read.begun,
                    fetch=max(0.0, received_at - asked_at),
                    inflate=time.monotonic() - received_at,
                )
                read.done.set_result(None)


def _nobody(_chain: Digest, _chunk: ChunkId, _lane: Lane, _received: int, _content: int) -> None:
    pass


def decode_all(group: Received) -> list[bytes | CacheError | None]:
    """The verified content of each chunk, or what is wrong with it. Releases the GIL for most of its time."""
    decoded: list[bytes | CacheError | None] = []
    for chunk, stored in group:
        try:
            decoded.append(None if stored is None else decode(stored, chunk, verify=True))
        except CacheError as exc:
            decoded.append(exc)
    return decoded
