"""How the bytes of one blob come: pieces side by side, broken ones resumed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from fastpull.config.proxy import MirrorSettings
from fastpull.proxy import metrics
from fastpull.proxy.errors import MirrorError, UpstreamInvalidError, UpstreamUnavailableError
from fastpull.proxy.mirror.blob_request import BlobSource, BodyRange, open_range
from fastpull.proxy.mirror.fill_plan import FillPlan
from fastpull.proxy.mirror.sink import Sink
from fastpull.proxy.mirror.spans import Spans
from fastpull.proxy.ranges import ByteRange
from fastpull.proxy.upstream.client import Upstream

log = logging.getLogger(__name__)

_MAX_RESTARTS = 5  # of a transfer whose upstream can not resume, so that all comes again
_LONGEST_PAUSE_SECONDS = 10.0


class Target(Protocol):
    """Where the bytes go."""

    @property
    def fd(self) -> int: ...

    @property
    def size(self) -> int | None:
        """Known from an earlier, unfinished fill; else ``begin`` is told."""
        ...

    @property
    def spans(self) -> Spans:
        """What is there already."""
        ...

    async def begin(self, size: int) -> None: ...

    def written(self, start: int, stop: int) -> None: ...

    def wanted(self) -> Iterable[int]:
        """Offsets at which readers wait."""
        ...


@dataclass(slots=True)
class _Piece:
    position: int  # everything before it is on disk
    stop: int


class Transfer:
    """Fetches all of a blob that is missing.

    The first request asks for the first piece only, so that it learns the size, whether upstream takes
    ranges, and gets the first bytes, all in one round trip. Then come the other pieces, side by side.
    """

    def __init__(
        self,
        source: BlobSource,
        upstream: Upstream,
        target: Target,
        threads: Executor,
        settings: MirrorSettings,
        first_offset: int = 0,
    ) -> None:
        self._source = source
        self._upstream = upstream
        self._target = target
        self._threads = threads
        self._piece_bytes = int(settings.range_bytes)
        self._attempts = settings.resume_attempts
        self._first_offset = first_offset
        self._plan: FillPlan | None = None
        self._group = asyncio.TaskGroup()
        self._restarts = 0

    async def run(self) -> None:
        """Return when all bytes are on disk. Raise ``MirrorError`` or ``OSError``, alone or in a group."""
        async with self._group:
            if self._target.size is not None:
                self._plan_pieces(self._target.size)
            else:
                await self._fetch(_Piece(self._first_offset, self._first_offset + self._piece_bytes))
            await self._work()

    def _plan_pieces(self, size: int, first: ByteRange | None = None) -> None:
        self._plan = FillPlan(size, self._piece_bytes, self._target.spans)
        if first is not None:
            self._plan.take_exactly(first)
        missing = size - self._target.spans.total - (first.length if first is not None else 0)
        pieces = -(-missing // self._piece_bytes)
        others = self._upstream.parallel_ranges - 1
        for number in range(min(others, pieces)):
            self._group.create_task(self._work_beside(), name=f"range {number} of {self._source.digest.hex[:12]}")

    async def _work(self) -> None:
        assert self._plan is not None
        while (piece := self._plan.take(self._target.wanted())) is not None:
            await self._fetch(_Piece(*piece))

    async def _work_beside(self) -> None:
        """As ``_work``, within what one upstream is asked for at a time."""
        assert self._plan is not None
        while True:
            async with self._upstream.transfers:
                piece = self._plan.take(self._target.wanted())
                if piece is None:
                    return
                await self._fetch(_Piece(*piece))

    async def _fetch(self, piece: _Piece) -> None:
        """Fetch a piece whole, however often its transfer breaks, as long as each attempt brings bytes."""
        failures = 0
        while piece.position < piece.stop or self._plan is None:
            before = piece.position
            try:
                await self._stream(piece)
                error: MirrorError = UpstreamUnavailableError(f"{self._upstream.name} ended the transfer early")
            except MirrorError as exc:
                if self._plan is None or not exc.is_transient:
                    raise
                error = exc
            except (aiohttp.ClientError, TimeoutError, ConnectionError) as exc:
                error = UpstreamUnavailableError(
                    f"the transfer from {self._upstream.name} broke: {str(exc) or 'timeout'}"
                )
            if self._plan is not None and piece.position >= piece.stop:
                return
            failures = 1 if piece.position > before else failures + 1
            if failures > self._attempts:
                raise error
            metrics.FILL_RESUMED.labels(self._upstream.name).inc()
            log.info("%s at %d: %s; trying again", self._source.digest, piece.position, error)
            await asyncio.sleep(_pause(failures, error.retry_after_seconds))

    async def _stream(self, piece: _Piece) -> None:
        asked = ByteRange(piece.position, piece.stop)
        size = self._target.size if self._target.size is not None else self._source.size
        async with open_range(self._upstream, self._source, asked, size) as (body, content):
            if self._plan is None:
                await self._learn(piece, body)
            if body.is_whole:
                self._take_the_rest(piece)
            received = metrics.UPSTREAM_BYTES.labels(self._upstream.name)
            sink = Sink(self._threads, self._target.fd, piece.position, lambda a, b: self._written(piece, a, b))
            position, cursor = body.start, piece.position
            try:
                while cursor < piece.stop and (data := await content.readany()):
                    received.inc(len(data))
                    position += len(data)
                    if position > cursor:
                        fresh = min(len(data), position - cursor)
                        fresh_data = data if fresh == len(data) else memoryview(data)[len(data) - fresh :]
                        await sink.put(fresh_data[: piece.stop - cursor])
                        cursor = min(position, piece.stop)
                await sink.flush()
            finally:
                await sink.settle()

    async def _learn(self, piece: _Piece, body: BodyRange) -> None:
        """The first answer tells the size: make room, and start on the other pieces."""
        await self._target.begin(body.size)
        piece.position, piece.stop = max(piece.position, body.start), body.stop
        self._plan_pieces(body.size, ByteRange(piece.position, piece.stop))

    def _take_the_rest(self, piece: _Piece) -> None:
        """Upstream sends the whole blob, whatever is asked: this one stream brings all that nobody else does yet."""
        assert self._plan is not None
        if piece.position > 0:
            self._restarts += 1
            if self._restarts > _MAX_RESTARTS:
                raise UpstreamInvalidError(f"{self._upstream.name} breaks transfers and can not resume them")
        piece.stop = self._plan.size
        self._plan.take_exactly(ByteRange(0, self._plan.size))

    def _written(self, piece: _Piece, start: int, stop: int) -> None:
        piece.position = stop
        self._target.written(start, stop)


def _pause(failures: int, retry_after_seconds: float | None) -> float:
    """Seconds until the next attempt: 0.05, 0.2, 0.8, … or what upstream asks for. Pure."""
    wanted = retry_after_seconds if retry_after_seconds is not None else 0.05 * 4.0 ** (failures - 1)
    return min(wanted, _LONGEST_PAUSE_SECONDS)
