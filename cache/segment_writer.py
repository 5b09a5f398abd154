"""Appending chunks to segments: the bytes first, the commit that makes them count after."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Self

from fastpull.cache.digest import ChunkId
from fastpull.cache.index_change import Change
from fastpull.cache.records import Entry
from fastpull.cache.segments import Appender, Segments
from fastpull.cache.store import StoredChunk


class SegmentWriter:
    """This process's end of the store. Used by one thread at a time.

    Invariant: between batches, the appender stands where the committed bytes of its segment end, and nobody else
    writes to that segment. A batch that fails gives the appender up: whether its commit happened is for the index
    to say, from which the next batch takes the position.
    """

    def __init__(self, segments: Segments, change: Callable[[], Change]) -> None:
        self._segments = segments
        self._change = change
        self._appender: Appender | None = None

    def batch(self) -> Batch:
        return Batch(self)

    def current(self) -> Appender:
        if self._appender is None:
            with self._change() as change:
                appender = self._adopt(change) or self._segments.create(change.new_segment())
            self._appender = appender  # not before the commit that makes the number ours
        return self._appender

    def next(self) -> Appender:
        self._appender = None
        return self.current()

    def close(self) -> None:
        if self._appender is not None:
            self._appender.close()
            self._appender = None

    def _adopt(self, change: Change) -> Appender | None:
        """A segment that a process which is gone left unfinished."""
        for number, segment in change.all_segments().items():
            if not segment.is_sealed and (appender := self._segments.adopt(number, segment.end)) is not None:
                return appender
        return None


class Batch:
    """Append, then commit the places, inside one ``with`` block; if that raises, nothing was appended."""

    def __init__(self, writer: SegmentWriter) -> None:
        self._writer = writer
        self._full: list[Appender] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_exc: object) -> None:
        for appender in self._full:
            appender.close()
        if kind is not None:
            self._writer.close()

    def append(self, chunks: Iterable[tuple[ChunkId, StoredChunk]]) -> dict[ChunkId, Entry]:
        """Write the stored bytes and return where they lie. Raise ``OSError``."""
        placed: dict[ChunkId, Entry] = {}
        run: list[bytes | memoryview] = []
        appender = self._writer.current()
        number, room, offset = appender.number, appender.room, appender.position
        for chunk, (encoding, size, data) in chunks:
            length = len(data)
            if offset + length > room:
                appender.write(run)
                self._full.append(appender)
                appender, run = self._writer.next(), []
                number, room, offset = appender.number, appender.room, appender.position
            placed[chunk] = Entry(encoding, length, size, number, offset, 0)
            run.append(data or b"\0")  # a place is known by where it begins, so each has a byte
            offset += length or 1
        appender.write(run)
        return placed

    def seal_full(self, change: Change) -> None:
        """Part of the commit: segments that this batch filled are never written to again."""
        for appender in self._full:
            change.seal(appender.number)
