"""Blocks of chunk frames, out of a store of any kind."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from fastpull.cache.codec import decode
from fastpull.cache.digest import ChunkId
from fastpull.cache.errors import ChunkCorruptError
from fastpull.cache.frames import HEADER, MISSING_FRAME
from fastpull.cache.store import ChunkPlace, ChunkView, Filling, StoredChunk
from fastpull.proxy import metrics

# A block is gathered from one view and written at once. On a busy machine, answers of 4 MB: 64 KiB blocks 0.68,
# 256 KiB 0.80, 1 MiB 0.95, 4 MiB 1.11 GB per core-second; the last for four times the memory of each connection.
_BLOCK_BYTES = 1 << 20


class Viewable(Protocol):
    """``ChunkStore``, or a reader of one."""

    def view(self) -> AbstractContextManager[ChunkView]: ...


@dataclass(slots=True)
class Block:
    """Frames for ``ids[start:stop]``."""

    data: bytes | bytearray
    stop: int
    damaged: list[ChunkId]


def measure(store: Viewable, ids: Sequence[ChunkId], block: Block) -> int | None:
    """The length of all frames behind ``block``; ``None`` when it can not be told: a chunk is missing or damaged."""
    if block.damaged:
        return None
    rest = ids[block.stop :]
    total = len(rest) * HEADER.size
    with store.view() as view:
        try:
            for chunk in rest:
                place = view.find(chunk)
                if place is None:
                    return None
                total += place.length
        except ChunkCorruptError:
            return None
    return total


def count(block: Block, start: int) -> None:
    """Tell the metrics of a block that is about to be sent."""
    metrics.CHUNKS_SENT.inc(block.stop - start)
    metrics.CHUNK_BYTES_SENT.inc(len(block.data))
    if block.damaged:
        metrics.CHUNKS_ABSENT.labels("damaged").inc(len(block.damaged))


def gather(store: Viewable, ids: Sequence[ChunkId], start: int, *, verify: bool, skip_missing: bool) -> Block:
    """Frames from ``ids[start]`` on, up to about 1 MiB or to the first chunk that is missing or damaged.

    With ``skip_missing`` such a chunk becomes a frame that says so, and the block goes on. With ``verify`` each chunk
    is checked against its id. What the disk can not give is damaged in any case.
    """
    with store.view() as view:
        if not verify:
            with contextlib.suppress(OSError):  # of some chunk: look at each
                return _at_once(view, ids, start, skip_missing=skip_missing)
        return _one_by_one(view, ids, start, verify=verify, skip_missing=skip_missing)


def _at_once(view: ChunkView, ids: Sequence[ChunkId], start: int, *, skip_missing: bool) -> Block:
    """Chunks that lie together on disk are read together, to where they belong between the headers."""
    places: list[ChunkPlace | None] = []
    damaged: list[ChunkId] = []
    size = 0
    for chunk in ids[start:]:
        try:
            place = view.find(chunk)
        except ChunkCorruptError:
            damaged.append(chunk)
            place = None
        if place is None and not skip_missing:
            break
        places.append(place)
        size += HEADER.size + (0 if place is None else place.length)
        if size >= _BLOCK_BYTES:
            break
    frames = bytearray(size)
    room = memoryview(frames)
    fillings: list[Filling] = []
    at = 0
    for place in places:
        if place is None:
            room[at : at + HEADER.size] = MISSING_FRAME
            at += HEADER.size
        else:
            encoding, plain_size, length, _, _ = place
            HEADER.pack_into(frames, at, encoding, length, plain_size)
            at += HEADER.size
            fillings.append((place, 0, room[at : at + length]))
            at += length
    view.fill(fillings)
    return Block(frames, start + len(places), damaged)


def _one_by_one(view: ChunkView, ids: Sequence[ChunkId], start: int, *, verify: bool, skip_missing: bool) -> Block:
    parts: list[bytes | memoryview] = []
    damaged: list[ChunkId] = []
    size = 0
    for chunk in ids[start:]:
        stored = _look(view, chunk, damaged, verify=verify)
        if stored is None and not skip_missing:
            break
        frame = (
            (MISSING_FRAME,)
            if stored is None
            else (HEADER.pack(stored.encoding, len(stored.data), stored.size), stored.data)
        )
        parts += frame
        size += sum(map(len, frame))
        start += 1
        if size >= _BLOCK_BYTES:
            break
    return Block(b"".join(parts), start, damaged)


def _look(view: ChunkView, chunk: ChunkId, damaged: list[ChunkId], *, verify: bool) -> StoredChunk | None:
    try:
        stored = view.get(chunk)
        if verify and stored is not None:
            decode(stored, chunk)
    except ChunkCorruptError:
        damaged.append(chunk)
        return None
    return stored
