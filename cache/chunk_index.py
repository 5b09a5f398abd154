"""The index of the chunk store: what is where, what was used when, what can be given back.

Everything in it changes in one LMDB transaction (``index_change.py``), accounts included, so a process that is
killed at any point leaves an index that is right. Bytes on disk: ``records.py``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple, Self

import lmdb

from fastpull.cache.digest import ChunkId
from fastpull.cache.disk_space import allocate
from fastpull.cache.environment import open_environment, translated
from fastpull.cache.errors import IndexDamagedError
from fastpull.cache.power_loss import UnflushedMarker
from fastpull.cache.records import (
    FREED,
    FREED_KEY,
    PLACE,
    PLACE_KEY,
    SEGMENT_KEY,
    WHOLE_FILE,
    Segment,
    check_format,
    pack_format,
    unpack_segment,
)

_PAGE = 4096
_RESERVE_BYTES = 256 * _PAGE  # several commits that evict VICTIMS_WHEN_FULL chunks
_READER = re.compile(r"^\s*\d+\s+[0-9a-fx]+\s+(\d+)\s*$", re.MULTILINE)
_DATABASES = ("meta", "index", "uses", "places", "segments", "freed")


class Place(NamedTuple):
    """Where a chunk's bytes lie."""

    segment: int
    offset: int
    length: int
    chunk: ChunkId


class Freed(NamedTuple):
    """A range of a segment, or all of it, that nothing needs any more."""

    key: bytes
    segment: int
    start: int
    end: int

    @property
    def length(self) -> int:
        return 0 if self.end == WHOLE_FILE else self.end - self.start


class ChunkIndex:
    """The environment and its databases."""

    def __init__(self, environment: lmdb.Environment, path: Path, marker: UnflushedMarker | None) -> None:
        self.environment = environment
        self.path = path
        self.marker = marker
        self._reserved = 0
        with translated(path), environment.begin(write=True) as transaction:
            handles = [environment.open_db(name.encode(), transaction) for name in _DATABASES]
            self.meta, self.index, self.uses, self.places, self.segments, self.freed = handles
            found = transaction.get(b"format", db=self.meta)
            if found is None:
                transaction.put(b"format", pack_format(), db=self.meta)
            else:
                check_format(found, str(path))

    @classmethod
    def open(cls, path: Path, *, map_bytes: int, marker: UnflushedMarker | None) -> Self:
        """With a ``marker``, commits are not flushed, and it is set while that is so.

        Raise ``IndexDamagedError`` also where the disk can not give all of it: later that would be SIGBUS.
        """
        _check_readable(path / "data.mdb")
        sync = marker is None
        environment = open_environment(path, map_bytes=map_bytes, databases=len(_DATABASES), sync=sync)
        try:
            return cls(environment, path, marker)
        except BaseException:
            environment.close()
            raise

    def read(self) -> lmdb.Transaction[bytes]:
        """A read transaction; where no database is named, in ``index``."""
        return self.environment.begin(self.index)

    def all_segments(self, transaction: lmdb.Transaction[bytes]) -> dict[int, Segment]:
        cursor = transaction.cursor(self.segments)
        return {SEGMENT_KEY.unpack(key)[0]: unpack_segment(data) for key, data in cursor}

    def places_behind(self, transaction: lmdb.Transaction[bytes], number: int, offset: int) -> list[Place]:
        """The places in a segment from ``offset`` on, in their order."""
        found = []
        cursor = transaction.cursor(self.places)
        more = cursor.set_range(PLACE_KEY.pack(number, offset))
        while more and (key := PLACE_KEY.unpack(cursor.key()))[0] == number:
            length, chunk = PLACE.unpack(cursor.value())
            found.append(Place(number, key[1], length, ChunkId(chunk)))
            more = cursor.next()
        return found

    def ready_to_give_back(self, durable: int, limit: int) -> list[Freed]:
        """Ranges freed by transactions up to ``durable`` that nobody can look at any more."""
        oldest = self.oldest_reader()
        last = durable if oldest is None else min(durable, oldest)
        ready: list[Freed] = []
        with self.read() as transaction:
            for key, data in transaction.cursor(self.freed):
                if len(ready) >= limit or FREED_KEY.unpack(key)[0] > last:
                    break
                ready.append(Freed(key, *FREED.unpack(data)))
        return ready

    def reserve(self) -> None:
        """Hold disk space for the next commits, so that evicting is possible when the disk is full.

        Raise ``OSError`` when there is none left.
        """
        info = self.environment.info()
        needed = (info["last_pgno"] + 1) * _PAGE + _RESERVE_BYTES
        if needed > self._reserved:
            allocate(self.path / "data.mdb", needed + _RESERVE_BYTES)
            self._reserved = needed + _RESERVE_BYTES

    def flush(self) -> int:
        """Put every commit on the disk. Return the number of the last one."""
        if self.marker is None:
            last = self.environment.info()["last_txnid"]
            self.environment.sync(True)
            return last
        with self.environment.begin(write=True) as transaction:  # keeps others from committing meanwhile
            self.environment.sync(True)
            self.marker.clear()
            last = transaction.id() - 1
            transaction.abort()
        return last

    def oldest_reader(self) -> int | None:
        """The oldest transaction that somebody, in whatever process, still looks at."""
        self.environment.reader_check()
        seen = [int(number) for number in _READER.findall(self.environment.readers())]
        return min(seen, default=None)


def _check_readable(file: Path) -> None:
    """Have every page read, of which LMDB would touch one or the other. In the page cache: 0.1 ms for each MiB.

    A process that died because it touched a page that the disk can not give thus does not die again and again.
    """
    block = bytearray(1 << 20)
    try:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(block):
                pass
    except FileNotFoundError:  # a new one
        return
    except OSError as exc:
        raise IndexDamagedError(f"{file}: the disk can not give it ({exc.strerror})") from exc
