"""The bytes of a chain's files, in its child: out of the node's store, or from the daemon."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from fastpull.cache.digest import ChunkId, Digest
from fastpull.cache.errors import CacheError
from fastpull.cache.lmdb_reader import LmdbChunkReader
from fastpull.fuse_client.device import ChainDevice
from fastpull.fuse_client.fetch.queue import Want
from fastpull.fuse_client.fetch.waited import Waited
from fastpull.fuse_client.portable.link import DaemonLink
from fastpull.fuse_client.portable.uses import UseReporter
from fastpull.image.chunk_map import ChunkMap

log = logging.getLogger(__name__)


class ChainContent:
    """``operations.Content``. What is local needs no daemon: a dead one costs only what was never fetched.

    The store is opened when it is there, and again when it began anew; without, the daemon is asked for all.
    """

    def __init__(
        self, chain: Digest, chunk_map: ChunkMap, store: Path, link: DaemonLink, *, verify_always: bool = False
    ) -> None:
        self._chain = chain
        self._map = chunk_map
        self._path = store
        self._link = link
        self._verify_always = verify_always
        self._reader: LmdbChunkReader | None = None
        self._device: ChainDevice | None = None
        self.uses = UseReporter(link)
        self._look()

    async def read(self, offset: int, length: int) -> bytes:
        return self._local(offset, length) or await self._link.read(offset, length)

    def tidy(self) -> None:
        """For every minute."""
        self.uses.report_all()
        if self._reader is None or not self._reader.is_current:
            self._look()
        else:
            self._reader.tidy()

    def close(self) -> None:
        self._device = None
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _local(self, offset: int, length: int) -> bytes:
        """Empty = not all of it is in the store."""
        if self._device is None:
            return b""
        found: list[bytes] = []
        try:
            # Joined while the view is open: nothing of it may outlive it.
            self._device.try_read(offset, length, lambda buffers: found.append(b"".join(buffers)))
        except CacheError as exc:
            log.warning("the store at %s can not be read: %s; the daemon is asked instead", self._path, exc)
        return found[0] if found else b""

    def _look(self) -> None:
        self.close()
        try:
            self._reader = LmdbChunkReader.open(self._path)
        except CacheError as exc:
            log.warning("there is no store to read at %s: %s; the daemon is asked for all", self._path, exc)
            return
        # A device of its own for each store: it knows of which chunks the bytes there were verified.
        self._device = ChainDevice(
            self._chain,
            self._map,
            self._reader,
            _NoFetcher(),
            _drop_nothing,
            verify_always=self._verify_always,
            waits_for_disk=True,
        )
        self.uses.watch(self._device)


class _NoFetcher:
    """The device is only asked for what is local."""

    window_bytes = 0

    async def get(
        self, _chain: Digest, _wants: Sequence[Want], _window: Iterable[Want] = (), /
    ) -> tuple[Mapping[ChunkId, bytes], Waited]:
        _refuse()


async def _drop_nothing(_chunks: Sequence[ChunkId]) -> None:
    _refuse()


def _refuse() -> NoReturn:
    raise AssertionError("a child writes nothing and fetches nothing")
