"""A chain's device: the virtual file into which the EROFS inodes point, made of chunks."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

from fastpull.cache.codec import decode
from fastpull.cache.digest import ChunkId, Digest, chunk_id
from fastpull.cache.errors import CacheError, ChunkCorruptError
from fastpull.cache.store import ChunkView, Encoding, Filling, StoredChunk
from fastpull.cache.tasks import in_thread
from fastpull.fuse_client.errors import ProxyError
from fastpull.fuse_client.fetch.queue import Want
from fastpull.fuse_client.fetch.waited import Waited
from fastpull.fuse_client.read_ahead import DiskWaits, ReadAhead
from fastpull.fuse_client.session.files import Buffers, DeviceReadError
from fastpull.image.chunk_map import ChunkMap, Piece

log = logging.getLogger(__name__)

BLOCK = 4096
LONGEST_READ = 1 << 20
_ZEROS = memoryview(bytes(LONGEST_READ))

# What is known of a chunk, one byte for each. The read path compares the byte with what it should be and
# knows in 30 ns that there is nothing to do.
_VERIFIED = 1  # its bytes in the store matched its id since the daemon started
_IN_USE = 2  # used since the last ``take_used``
_TOUCHED = 4  # used since the device was opened
_SEEN = _VERIFIED | _IN_USE | _TOUCHED
_NEVER = 255  # no state equals it: every read looks

_DROP_IN_USE = bytes(value & ~_IN_USE for value in range(256))
_DROP_VERIFIED = bytes(value & ~_VERIFIED for value in range(256))
_REPORT_SECONDS = 10.0  # at most one log line about damaged chunks of a chain in this time
_DROP_TOUCHED = bytes(value & ~_TOUCHED for value in range(256))


def _nothing() -> None:
    pass


class Observer(Protocol):
    """Learns what readers do: ``trace.Recorder``."""

    def touched(self, index: int) -> None: ...

    def waited(self, offset: int, length: int, waited: Waited) -> None: ...


class LocalChunks(Protocol):
    """``ChunkStore``, as far as a device reads it."""

    def view(self) -> AbstractContextManager[ChunkView]: ...

    def has(self, chunks: Sequence[ChunkId]) -> list[bool]: ...

    def read_ahead(self, chunks: Sequence[ChunkId]) -> int: ...


class FetchesChunks(Protocol):
    """``Fetcher``, as far as a device needs it."""

    @property
    def window_bytes(self) -> int: ...

    async def get(
        self, chain: Digest, wants: Sequence[Want], window: Iterable[Want] = (), /
    ) -> tuple[Mapping[ChunkId, bytes], Waited]: ...


class _Gathered(NamedTuple):
    data: memoryview
    news: Sequence[Piece]
    """Verified just now, or used for the first time."""
    waited: float
    """Seconds for the disk."""


class _Local(NamedTuple):
    """What the store has of a range: all of it, or some of its chunks."""

    data: bytes | None
    chunks: Mapping[ChunkId, bytes]
    damaged: Sequence[ChunkId]
    news: Sequence[Piece]
    waited: float


_NOTHING = _Local(None, {}, (), (), 0.0)


class _Unobserved:
    def touched(self, index: int) -> None:
        pass

    def waited(self, offset: int, length: int, waited: Waited) -> None:
        pass


class ChainDevice:
    """``DeviceFile`` over a chunk map, the node's store and the fetcher.

    No byte leaves that was not verified against its chunk id: when it was fetched, and again at its first
    read out of the store since the start (``verify="once"``) or at each (``"always"``; a hash of 64 KiB
    takes 12 us). A damaged chunk is dropped and fetched anew. Between the chunks, and behind the last, are zeros.
    """

    def __init__(
        self,
        chain: Digest,
        chunk_map: ChunkMap,
        store: LocalChunks,
        fetcher: FetchesChunks,
        drop: Callable[[Sequence[ChunkId]], Awaitable[object]],
        *,
        verify_always: bool = False,
        waits_for_disk: bool = False,
        window_bytes: int = 2 << 20,
    ) -> None:
        """``waits_for_disk``: ``try_read`` does; for a process in which nobody else would have to wait.

        ``window_bytes``: of neighbours taken along with a miss, at most; see ``fetch/window.py``.
        """
        self.chain = chain
        self.map = chunk_map
        self.size = -(-chunk_map.device_bytes // BLOCK) * BLOCK  # what the session asks of every file
        self.window_bytes = window_bytes
        self.observer: Observer = _Unobserved()
        self.on_forget: Callable[[], None] = _nothing  # others who remember touches: a child of the portable driver
        self.reads = 0
        self.misses = 0
        self.damaged = 0
        self._store = store
        self._fetcher = fetcher
        self._drop = drop
        self._state = bytearray(len(chunk_map))
        self._unreported = 0
        self._reported_at = -_REPORT_SECONDS
        self._seen = _NEVER if verify_always else _SEEN
        self._waits_for_disk = waits_for_disk
        self._ahead = ReadAhead()
        self._disk = DiskWaits()

    # -- reading -------------------------------------------------------------------------------------

    def try_read(self, offset: int, length: int, reply: Callable[[Buffers], None]) -> bool:
        pieces = self.map.pieces(offset, length)
        with self._store.view() as view:
            found = self._gather(view, pieces, offset, length, wait=self._waits_for_disk)
            if found is None:
                return False
            self._mark(found.news)
            reply((found.data,))
        self._go_on(offset, length)
        if found.waited:
            self._waited_for_disk(offset, length, found.waited)
        self.reads += 1
        return True

    async def read(self, offset: int, length: int) -> Buffers:
        self.reads += 1
        pieces = self.map.pieces(offset, length)
        local = await self._from_store(pieces, offset, length)
        if local.data is not None:
            self._waited_for_disk(offset, length, local.waited)
            return (local.data,)
        chunks = dict(local.chunks)
        missing = [piece for piece in pieces if piece.chunk_id not in chunks]
        if missing:
            self.misses += 1
            wants = [Want(piece.chunk_id, piece.size) for piece in missing]
            try:
                fetched, waited = await self._fetcher.get(self.chain, wants, self._window(missing))
            except ProxyError as exc:
                raise DeviceReadError(f"chain {self.chain}: {exc}", remedy=exc.remedy) from exc
            for piece in missing:
                chunks[piece.chunk_id] = fetched[piece.chunk_id]
                self._touch(piece.index)
            self.observer.waited(offset, length, waited)
        return self._compose(offset, length, pieces, chunks)

    async def _from_store(self, pieces: Sequence[Piece], offset: int, length: int) -> _Local:
        """What the store has of a range; what it lacks now is not there when this returns, unless it is damaged."""
        local = _NOTHING
        lacking = pieces
        while any(self._store.has([piece.chunk_id for piece in lacking])):  # else it came while a thread looked
            self._go_on(offset, length)
            local = await in_thread(self._from_disk, pieces, offset, length)
            self._mark(local.news)
            if local.data is not None:
                break
            if local.damaged:
                await self._replace(local.damaged)
            lacking = [p for p in lacking if p.chunk_id not in local.chunks and p.chunk_id not in local.damaged]
        return local

    def _gather(
        self, view: ChunkView, pieces: Sequence[Piece], offset: int, length: int, *, wait: bool
    ) -> _Gathered | None:
        """A range of the device, in a room of the view; ``None`` where something is absent, damaged or, without
        ``wait``, on a disk that is too slow to wait for. Changes nothing but what is known of the disk's speed.
        """
        if not pieces:
            return _Gathered(_ZEROS[:length], (), 0.0)
        state, seen = self._state, self._seen
        end = offset + length
        at = first = min(offset, pieces[0].device_offset)
        base = first - (first - offset) % BLOCK  # what is at ``base`` on the device is at 0 in the room, pages in pages
        room = view.room(max(end, pieces[-1].device_offset + pieces[-1].size) - base)
        fillings: list[Filling] = []
        news: list[Piece] = []
        try:
            for piece in pieces:
                place = view.find(piece.chunk_id)
                # Nodes store chunks raw; the one that another version stored otherwise needs more than a copy.
                if place is None or place.encoding is not Encoding.RAW or place.length != piece.size:
                    return None
                start = piece.device_offset
                stop = start + piece.size
                if start > at:
                    room[at - base : start - base] = _ZEROS[: start - at]
                at = stop
                if state[piece.index] == seen:
                    begin = max(start, offset)
                    fillings.append((place, begin - start, room[begin - base : min(stop, end) - base]))
                else:
                    news.append(piece)
                    fillings.append((place, 0, room[start - base : stop - base]))
            waited = 0.0
            if not view.fill(fillings, wait=False):
                if not wait and not self._disk.are_short:
                    return None
                begun = time.perf_counter()
                view.fill(fillings)
                waited = time.perf_counter() - begun
                self._disk.took(waited)
        except (CacheError, OSError):
            return None
        for piece in news:
            start = piece.device_offset - base
            if self._is_unverified(piece) and chunk_id(room[start : start + piece.size]) != piece.chunk_id:
                return None
        if at < end:
            room[at - base : end - base] = _ZEROS[: end - at]
        return _Gathered(room[offset - base : end - base], news, waited)

    def _from_disk(self, pieces: Sequence[Piece], offset: int, length: int) -> _Local:
        """What the store has of a range. On a thread: waits for the disk, and changes nothing."""
        with self._store.view() as view:
            found = self._gather(view, pieces, offset, length, wait=True)
            if found is not None:
                return _Local(bytes(found.data), {}, (), found.news, found.waited)
            chunks: dict[ChunkId, bytes] = {}
            damaged: list[ChunkId] = []
            for piece in pieces:
                try:
                    if (stored := view.get(piece.chunk_id)) is not None:
                        chunks[piece.chunk_id] = self._content(piece, stored)
                except CacheError:
                    damaged.append(piece.chunk_id)
        return _Local(None, chunks, damaged, [piece for piece in pieces if piece.chunk_id in chunks], 0.0)

    def _go_on(self, offset: int, length: int) -> None:
        """Have the disk begin to read what the reader of this range will want next."""
        if self._ahead and (coming := self._ahead.follow(offset, length)):
            pieces = self.map.pieces(coming.start, len(coming))
            with contextlib.suppress(CacheError):
                if not self._store.read_ahead([piece.chunk_id for piece in pieces]):
                    self._ahead.was_in_memory(offset, length)

    def _waited_for_disk(self, offset: int, length: int, seconds: float) -> None:
        self._ahead.waited(offset, length)
        self.observer.waited(offset, length, Waited(disk=seconds))

    def _content(self, piece: Piece, stored: StoredChunk) -> bytes:
        """Raise ``ChunkCorruptError``."""
        content = decode(stored, piece.chunk_id, verify=self._is_unverified(piece))
        if len(content) != piece.size:
            raise ChunkCorruptError(piece.chunk_id, f"it has {len(content)} bytes, the chunk map says {piece.size}")
        return content

    def _is_unverified(self, piece: Piece) -> bool:
        return self._seen == _NEVER or not self._state[piece.index] & _VERIFIED

    def _mark(self, verified: Iterable[Piece]) -> None:
        for piece in verified:
            self._state[piece.index] |= _VERIFIED
            self._touch(piece.index)

    async def _replace(self, damaged: Sequence[ChunkId]) -> None:
        self.damaged += len(damaged)
        self._unreported += len(damaged)
        now = time.monotonic()
        if now - self._reported_at >= _REPORT_SECONDS:
            log.error("chain %s: %d damaged chunks in the node cache, fetched anew", self.chain, self._unreported)
            self._reported_at, self._unreported = now, 0
        for chunk in damaged:
            if (index := self.map.index_of(chunk)) is not None:
                self._state[index] &= ~_VERIFIED
        try:
            await self._drop(damaged)
        except CacheError as exc:  # a disk that fails may fail for this, too; the reader gets its bytes anyhow
            log.info("chain %s: the damaged chunks stay in the node cache: %s", self.chain, exc)

    def _compose(
        self, offset: int, length: int, pieces: Sequence[Piece], chunks: dict[ChunkId, bytes]
    ) -> list[bytes | memoryview]:
        at = offset
        end = offset + length
        buffers: list[bytes | memoryview] = []
        for piece in pieces:
            data = chunks[piece.chunk_id]
            if len(data) != piece.size:
                raise DeviceReadError(
                    f"chain {self.chain}: chunk {piece.chunk_id.hex()[:12]} has {len(data)} bytes, "
                    f"the chunk map says {piece.size}",
                    remedy="the chunk map is damaged: unmount and mount the chain again",
                )
            if piece.device_offset > at:
                buffers.append(_ZEROS[: piece.device_offset - at])
                at = piece.device_offset
            upto = min(piece.device_offset + piece.size, end)
            buffers.append(memoryview(data)[at - piece.device_offset : upto - piece.device_offset])
            at = upto
        if at < end:
            buffers.append(_ZEROS[: end - at])
        return buffers

    def _touch(self, index: int) -> None:
        state = self._state[index]
        if not state & _TOUCHED:
            self.observer.touched(index)
        self._state[index] = state | _IN_USE | _TOUCHED

    def _window(self, missing: Sequence[Piece]) -> Iterator[Want]:
        """Absent neighbours in device order, where neighbours are files of one directory: three quarters of
        the window behind the miss, the nearest first, then one before it.
        """
        size = min(self.window_bytes, self._fetcher.window_bytes)
        after = self._neighbours(range(missing[-1].index + 1, len(self.map)), size * 3 // 4)
        before = self._neighbours(range(missing[0].index - 1, -1, -1), size // 4)
        wants = [*after, *before]
        there = self._store.has([want.chunk for want in wants])
        return (want for want, local in zip(wants, there, strict=True) if not local)

    def _neighbours(self, indexes: Iterable[int], budget: int) -> Iterator[Want]:
        for index in indexes:
            budget -= (size := self.map.size_at(index))
            if budget < 0:
                return
            yield Want(self.map.id_at(index), size)

    # -- what others ask -----------------------------------------------------------------------------

    def take_used(self) -> list[ChunkId]:
        """Chunks used since the last call, for the store's order of eviction."""
        return [self.map.id_at(index) for index in self.take_used_indexes()]

    def distrust(self) -> None:
        """Check each chunk in the store again at its next read: the disk has lost something that was written."""
        self._state[:] = self._state.translate(_DROP_VERIFIED)

    def forget_touches(self) -> None:
        """Report every chunk to the observer again at its next use."""
        self._state[:] = self._state.translate(_DROP_TOUCHED)
        self.on_forget()

    def take_used_indexes(self) -> list[int]:
        """``take_used``, as places in the chunk map."""
        used = [index for index, state in enumerate(self._state) if state & _IN_USE]
        self._state[:] = self._state.translate(_DROP_IN_USE)
        return used

    def used_elsewhere(self, indexes: Iterable[int], reads: int) -> None:
        """Somebody else read these places of the map out of the store, in so many reads; others are left out."""
        for index in indexes:
            if index < len(self._state):
                self._touch(index)
        self.reads += reads

    def needs(self, chunk: ChunkId) -> bool:
        """Whether a reader of this device has used the chunk: it is evicted last."""
        index = self.map.index_of(chunk)
        return index is not None and bool(self._state[index] & _TOUCHED)

    def local(self) -> tuple[int, int]:
        """How many chunks, and bytes of them, are in the store. Takes a microsecond for each chunk of the chain."""
        chunks = size = 0
        for first in range(0, len(self.map), 4096):
            block = range(first, min(first + 4096, len(self.map)))
            for index, there in zip(block, self._store.has([self.map.id_at(i) for i in block]), strict=True):
                if there:
                    chunks += 1
                    size += self.map.size_at(index)
        return chunks, size
