"""One blob on its way from upstream to disk, for any number of readers.

The fill is a task of its own: no reader's fate ends it. Readers wait for bytes at their own offsets and
read the file; nothing is kept in memory for them. Bytes that a reader waits for are fetched first.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Executor
from typing import Any

from fastpull.config.proxy import MirrorSettings
from fastpull.proxy import metrics
from fastpull.proxy.errors import BlobFillError, MirrorError, UpstreamInvalidError
from fastpull.proxy.mirror.blob_request import BlobSource
from fastpull.proxy.mirror.disk_errors import translated
from fastpull.proxy.mirror.partial import Partial
from fastpull.proxy.mirror.spans import Spans
from fastpull.proxy.mirror.transfer import Transfer
from fastpull.proxy.upstream.client import Upstream

_HASH_STEP_BYTES = 8 * 2**20
_HASH_BUFFER_BYTES = 2**20


class DigestMismatchError(UpstreamInvalidError):
    """All bytes came, and they are not the blob."""


class Fill:
    """The transfer of one blob. ``run`` is its task; the rest is for readers, on the same event loop.

    Readers get bytes as they come, but the last ``holdback_bytes`` only when all of them are known to be
    right, so that nobody receives a complete wrong blob.
    """

    def __init__(
        self,
        source: BlobSource,
        upstream: Upstream,
        partial: Partial,
        threads: Executor,
        settings: MirrorSettings,
        *,
        make_room: Callable[[int], Awaitable[None]],
        first_offset: int = 0,
    ) -> None:
        self.source = source
        self.partial = partial
        self.is_verified = False
        self.failure: BaseException | None = None
        self.sized: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.sized.add_done_callback(_retrieve)
        self._upstream = upstream
        self._threads = threads
        self._settings = settings
        self._make_room = make_room
        self._first_offset = first_offset
        self._waiters: dict[asyncio.Future[None], int] = {}
        self._wanted: dict[asyncio.Future[None], int] = {}

    # -- for readers ---------------------------------------------------------------------------------------

    @property
    def remaining_bytes(self) -> int | None:
        """What is still to come; ``None`` = nobody knows."""
        size = self.partial.size
        return None if size is None else size - self.partial.spans.total

    def available_from(self, offset: int, *, unverified: bool) -> int:
        """The end of the bytes that may be read from ``offset`` on; ``offset`` = none."""
        end = self.partial.spans.end_from(offset)
        if not self.is_verified and not unverified:
            end = min(end, (self.partial.size or 0) - self._settings.holdback_bytes)
        return max(offset, end)

    async def wait_from(self, offset: int, *, unverified: bool, is_wanted: bool = True) -> int:
        """Wait until bytes at ``offset`` may be read, and return their end. Raise ``BlobFillError``.

        ``unverified`` gives the last bytes before the digest is known to be right. ``is_wanted`` has the
        bytes fetched before others.
        """
        while (end := self.available_from(offset, unverified=unverified)) <= offset:
            if self.failure is not None:
                raise BlobFillError(self.source.digest, self.failure) from self.failure
            await self._wait(offset, unverified=unverified, is_wanted=is_wanted)
        return end

    async def _wait(self, offset: int, *, unverified: bool, is_wanted: bool) -> None:
        waiter = asyncio.get_running_loop().create_future()
        is_held_back = self.partial.spans.end_from(offset) > offset and not unverified
        # Held-back bytes are there; only the verdict wakes their readers.
        self._waiters[waiter] = (self.partial.size or 0) if is_held_back else offset
        if is_wanted and not is_held_back:
            self._wanted[waiter] = offset
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)
            self._wanted.pop(waiter, None)

    # -- the task ------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Fetch and verify. Raise ``MirrorError``. Readers learn of both ends; the caller commits or discards."""
        try:
            with translated(self.partial.path):
                await self._run()
        except BaseException as exc:
            self._fail(exc)
            raise

    async def _run(self) -> None:
        if self.partial.size is not None and self.source.size in (None, self.partial.size):
            self.sized.set_result(self.partial.size)
        else:
            self.partial.size = None
        transfer = Transfer(self.source, self._upstream, self, self._threads, self._settings, self._first_offset)
        try:
            async with asyncio.TaskGroup() as group:
                hashing = group.create_task(self._hash(), name=f"hash {self.source.digest.hex[:12]}")
                await transfer.run()
        except BaseExceptionGroup as errors:
            raise _telling(errors) from errors
        if hashing.result() != self.source.digest.hex:
            metrics.BLOBS_MISMATCHED.labels(self._upstream.name).inc()
            raise DigestMismatchError(
                f"{self._upstream.name} sent {self.source.digest} with the bytes of sha256:{hashing.result()}"
            )
        self.is_verified = True
        self._wake()

    def stop(self) -> None:
        """The task will not run (any more)."""
        if self.failure is None and not self.is_verified:
            self._fail(BlobFillError(self.source.digest, "the transfer was stopped"))

    def _fail(self, exc: BaseException) -> None:
        self.failure = exc
        if not self.sized.done():
            is_ours = isinstance(exc, MirrorError)
            self.sized.set_exception(exc if is_ours else BlobFillError(self.source.digest, "the transfer was stopped"))
        self._wake()

    def _wake(self) -> None:
        is_over = self.is_verified or self.failure is not None
        spans = self.partial.spans
        for waiter, offset in self._waiters.items():
            if (is_over or spans.end_from(offset) > offset) and not waiter.done():
                waiter.set_result(None)

    async def _hash(self) -> str:
        """sha256 of the blob, in order, as far as its beginning is there; in a thread, from the page cache."""
        size = await asyncio.shield(self.sized)
        loop = asyncio.get_running_loop()
        state = hashlib.sha256()
        position = 0
        while position < size:
            end = await self.wait_from(position, unverified=True, is_wanted=False)
            stop = min(end, position + _HASH_STEP_BYTES)
            await finish(loop.run_in_executor(self._threads, _hash_range, state, self.partial.fd, position, stop))
            position = stop
        return state.hexdigest()

    # -- Target of the transfer ----------------------------------------------------------------------------

    @property
    def fd(self) -> int:
        return self.partial.fd

    @property
    def size(self) -> int | None:
        return self.partial.size

    @property
    def spans(self) -> Spans:
        return self.partial.spans

    async def begin(self, size: int) -> None:
        await self._make_room(size)
        self.partial.begin(size)
        self.sized.set_result(size)

    def written(self, start: int, stop: int) -> None:
        self.partial.mark(start, stop)
        self._wake()

    def wanted(self) -> Iterable[int]:
        return self._wanted.values()


def _hash_range(state: Any, fd: int, start: int, stop: int) -> None:
    buffer = bytearray(min(_HASH_BUFFER_BYTES, stop - start))
    view = memoryview(buffer)
    while start < stop:
        got = os.preadv(fd, [view[: stop - start]], start)
        if not got:
            raise OSError(f"the file ends at {start}")
        state.update(view[:got])
        start += got


async def finish(work: asyncio.Future[None]) -> None:
    """Wait for a thread that uses the file, also when cancelled meanwhile."""
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait([work])
        raise


def _telling(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error of a group that says most; the others follow from it."""
    leaves = list(_leaves(errors))
    for kind in (OSError, MirrorError, Exception):
        for leaf in leaves:
            if isinstance(leaf, kind):
                return leaf
    return leaves[0]


def _leaves(errors: BaseExceptionGroup[BaseException]) -> Iterable[BaseException]:
    for exc in errors.exceptions:
        if isinstance(exc, BaseExceptionGroup):
            yield from _leaves(exc)
        else:
            yield exc


def _retrieve(future: asyncio.Future[Any]) -> None:
    """A failure that nobody waited for is not worth a warning: the fill's task reports it."""
    if not future.cancelled():
        future.exception()
