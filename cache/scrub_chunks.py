"""Scrubbing a chunk store: every chunk against its id."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence

from fastpull.cache.codec import decode
from fastpull.cache.digest import ChunkId
from fastpull.cache.errors import ChunkCorruptError, ChunkMissingError
from fastpull.cache.scrub import STEP_BYTES, Damage, Step
from fastpull.cache.store import ChunkStore


class ChunksCheck:
    """``Check`` over a store. Reads copies: touching the map of a disk that fails would kill the process."""

    kind = "chunks"

    def __init__(self, store: ChunkStore, drop: Callable[[Sequence[ChunkId]], Awaitable[int]]) -> None:
        """``drop`` is the store's, wherever its writes are done."""
        self._store = store
        self._drop = drop

    def total(self) -> int:
        return self._store.stats().chunks

    def steps(self) -> Iterator[Step]:
        size = checked = 0
        damaged: list[Damage] = []
        unchecked: list[str] = []
        for chunk in self._store.ids():
            try:
                stored = self._store.get(chunk)
                size += len(stored.data)
                decode(stored, chunk)
            except ChunkMissingError:
                if not self._store.has([chunk])[0]:
                    continue  # evicted meanwhile
                unchecked.append(f"{chunk.hex()[:12]} is of another version: left alone")
            except ChunkCorruptError as exc:
                damaged.append(Damage(chunk.hex(), str(exc)))
            checked += 1
            if size >= STEP_BYTES or len(damaged) >= 64:
                yield Step(size, checked, tuple(damaged), tuple(unchecked))
                size = checked = 0
                damaged, unchecked = [], []
        yield Step(size, checked, tuple(damaged), tuple(unchecked))

    async def drop(self, damage: Damage) -> bool:
        chunk = ChunkId(bytes.fromhex(damage.key))
        await self._drop([chunk])
        return True
