"""Writes a stream to a file in threads, while more of it arrives."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor

from fastpull.cache.write_back import start_writing

_PENDING_BYTES = 2 * 2**20  # kept in memory per stream; then the stream waits for the disk
_IOV = 512


class Sink:
    """One stream's way to disk, from ``position`` on.

    What arrives while a write runs goes into the next write: batches grow as the disk slows down and a byte
    that comes alone is written at once. ``on_written(start, stop)`` is called on the event loop, in order.
    """

    def __init__(self, threads: Executor, fd: int, position: int, on_written: Callable[[int, int], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._threads = threads
        self._fd = fd
        self._position = position
        self._on_written = on_written
        self._batch: list[bytes | memoryview] = []
        self._batch_bytes = 0
        self._writing: asyncio.Future[int] | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._failure: BaseException | None = None

    async def put(self, data: bytes | memoryview) -> None:
        """Take ``data``; wait while too much is pending. Raise ``OSError`` when a write failed."""
        if self._failure is not None:  # what comes behind a write that failed would land in its place
            raise self._failure
        self._batch.append(data)
        self._batch_bytes += len(data)
        if self._writing is None:
            self._start()
        while self._batch_bytes > _PENDING_BYTES and self._failure is None:
            assert self._writing is not None
            await asyncio.wait([self._writing])
        if self._failure is not None:
            raise self._failure

    async def flush(self) -> None:
        """Return when all is written. Raise ``OSError`` when a write failed."""
        await self._idle.wait()
        if self._failure is not None:
            raise self._failure

    async def settle(self) -> None:
        """Return when no thread touches the file any more, whatever happened.

        Not even cancellation cuts this short: a write to a closed descriptor would land in whatever file has
        its number next.
        """
        self._batch.clear()
        self._batch_bytes = 0
        cancelled = None
        while not self._idle.is_set():
            try:
                await self._idle.wait()
            except asyncio.CancelledError as exc:
                cancelled = exc
        if cancelled is not None:
            raise cancelled

    def _start(self) -> None:
        batch, self._batch, self._batch_bytes = self._batch, [], 0
        self._idle.clear()
        self._writing = self._loop.run_in_executor(self._threads, _write_all, self._fd, self._position, batch)
        self._writing.add_done_callback(self._written)

    def _written(self, done: asyncio.Future[int]) -> None:
        self._writing = None
        if done.cancelled():
            self._failure = self._failure or OSError("the write was cancelled")
        elif (failure := done.exception()) is not None:
            self._failure = failure
        else:
            start, self._position = self._position, self._position + done.result()
            self._on_written(start, self._position)
        if self._batch and self._failure is None:
            self._start()
        else:
            self._idle.set()


def _write_all(fd: int, position: int, batch: list[bytes | memoryview]) -> int:
    """Write the buffers one behind the other, and have the disk begin with them; return how many bytes that were."""
    total = sum(map(len, batch))
    done = 0
    pending = [memoryview(data) for data in batch]
    while pending:
        written = os.pwritev(fd, pending[:_IOV], position + done)
        done += written
        while pending and written >= len(pending[0]):
            written -= len(pending.pop(0))
        if pending and written:
            pending[0] = pending[0][written:]
    assert done == total
    start_writing(fd, position, position + total)
    return done
