"""Reading a chunk store that another process keeps (``lmdb_store.py``), without ever writing to it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Self

import lmdb

from fastpull.cache.digest import ChunkId
from fastpull.cache.environment import translated
from fastpull.cache.lmdb_view import LmdbView
from fastpull.cache.records import check_format
from fastpull.cache.resident import release_mapping
from fastpull.cache.segments import Segments
from fastpull.cache.store import ChunkView

_DATABASES = 16
_MAP_BYTES = 1 << 40  # of addresses, not of memory: more than the writer's map, whatever its quota


class LmdbChunkReader:
    """``view``, ``has`` and ``read_ahead`` of a ``ChunkStore``.

    Chunks that are put later show, those that are evicted do not.

    The writer knows of open views and gives no space back that one may need. A writer that starts the store anew,
    empty, is noticed before bytes of the new one could be taken for those of the old: see ``is_current``.
    """

    def __init__(self, path: Path, environment: lmdb.Environment) -> None:
        self._path = path
        self.environment = environment
        self._identity = _identity(path)
        with translated(path):
            meta = environment.open_db(b"meta", create=False)
            self.index = environment.open_db(b"index", create=False)
            with environment.begin(meta) as transaction:
                check_format(transaction.get(b"format", b""), str(path))
        self._segments = _CurrentSegments(self, path)

    @classmethod
    def open(cls, path: Path) -> Self:
        """Raise ``CacheError`` where there is no store (yet), ``StoreVersionError`` for one of another version."""
        with translated(path, with_system_calls=True):
            environment = lmdb.open(
                str(path / "index"),
                readonly=True,
                create=False,
                map_size=_MAP_BYTES,
                max_dbs=_DATABASES,
                max_spare_txns=4,
            )
        try:
            with translated(path, with_system_calls=True):
                return cls(path, environment)
        except BaseException:
            environment.close()
            raise

    @property
    def is_current(self) -> bool:
        """False = the store was removed, or started anew: open it again."""
        try:
            return _identity(self._path) == self._identity
        except OSError:
            return False

    def view(self) -> AbstractContextManager[ChunkView]:
        return LmdbView(self, self._segments)

    def has(self, chunks: Sequence[ChunkId]) -> list[bool]:
        with translated(self._path), self.environment.begin(self.index) as transaction:
            return [transaction.get(chunk) is not None for chunk in chunks]

    def read_ahead(self, chunks: Sequence[ChunkId]) -> int:
        """As ``ChunkStore.read_ahead``."""
        with translated(self._path, with_system_calls=True), LmdbView(self, self._segments) as view:
            return view.read_ahead(chunks)

    def tidy(self) -> None:
        """Let go of segments that are gone, and of resident pages, which stay in the page cache. For every minute."""
        self._segments.forget_removed()
        release_mapping(self._path / "index" / "data.mdb")

    def close(self) -> None:
        """No view may be open."""
        self._segments.close()
        self.environment.close()


class _CurrentSegments(Segments):
    """Segment numbers begin anew in a store that is started anew: none of its files is opened for the old index."""

    def __init__(self, reader: LmdbChunkReader, path: Path) -> None:
        super().__init__(path, segment_bytes=0)  # it creates none
        self._reader = reader

    def _descriptor(self, number: int) -> int:
        descriptor = self._descriptors.get(number)
        if descriptor is None:
            descriptor = super()._descriptor(number)
            if not self._reader.is_current:
                self.forget([number])
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self.path(number)))
        return descriptor


def _identity(path: Path) -> tuple[int, int]:
    info = (path / "index" / "data.mdb").stat()
    return info.st_dev, info.st_ino
