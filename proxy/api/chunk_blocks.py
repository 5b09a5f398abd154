"""Blocks of chunk frames, out of a store of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from fastpull.cache.codec import decode
from fastpull.cache.digest import ChunkId
from fastpull.cache.errors import ChunkCorruptError
from fastpull.cache.fault_in import fault_in
from fastpull.cache.frames import HEADER, MISSING_FRAME
from fastpull.cache.store import ChunkView, StoredChunk
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

    data: bytes
    stop: int
    damaged: list[ChunkId]


def measure(store: Viewable, ids: Sequence[ChunkId], start: int) -> int | None:
    """The length of all frames from ``ids[start]`` on; ``None`` when a chunk is missing or damaged."""
    total = (len(ids) - start) * HEADER.size
    with store.view() as view:
        try:
            for chunk in ids[start:]:
                stored = view.get(chunk)
                if stored is None:
                    return None
                total += len(stored.data)
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
    try:
        return _gather(store, ids, start, verify=verify, skip_missing=skip_missing)
    except OSError:  # of some chunk: look at each
        return _gather(store, ids, start, verify=True, skip_missing=skip_missing)


def _gather(store: Viewable, ids: Sequence[ChunkId], start: int, *, verify: bool, skip_missing: bool) -> Block:
    """``gather``; without ``verify``, raise ``OSError`` where the disk can not give all of it."""
    parts: list[bytes | memoryview] = []
    damaged: list[ChunkId] = []
    size = 0
    stop = start
    pack, header_size = HEADER.pack, HEADER.size
    with store.view() as view:
        for stop in range(start, len(ids)):
            chunk = ids[stop]
            stored = _look(view, chunk, damaged, verify=verify)
            if stored is None:
                if not skip_missing:
                    break
                parts.append(MISSING_FRAME)
                size += header_size
            else:
                encoding, plain_size, data = stored
                length = len(data)
                parts.append(pack(encoding, length, plain_size))
                parts.append(data)
                size += header_size + length
            if size >= _BLOCK_BYTES:
                stop += 1
                break
        else:
            stop = len(ids)
        if not verify:
            fault_in(parts)  # touching what the disk can not give would kill the process; a fifth of the rate
        return Block(b"".join(parts), stop, damaged)


def _look(view: ChunkView, chunk: ChunkId, damaged: list[ChunkId], *, verify: bool) -> StoredChunk | None:
    try:
        stored = view.get(chunk)
        if verify and stored is not None:
            fault_in((stored.data,))
            decode(stored, chunk)
    except (ChunkCorruptError, OSError):
        damaged.append(chunk)
        return None
    return stored
