"""Which chunks go when space is needed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from typing import NamedTuple

from fastpull.cache.digest import ChunkId


class Candidate(NamedTuple):
    chunk: ChunkId
    footprint: int  # bytes freed when it goes


class Choice(NamedTuple):
    victims: list[Candidate]
    passed_over: list[ChunkId]  # in use, older than the last victim, and spared

    @property
    def freed(self) -> int:
        return sum(victim.footprint for victim in self.victims)


def choose(
    candidates: Iterable[Candidate],
    need_bytes: int,
    *,
    in_use: Callable[[ChunkId], bool],
    never: Container[ChunkId] = frozenset(),
    limit: int = 1024,
) -> Choice:
    """Choose victims until ``need_bytes`` are freed, or ``limit`` of them, or nothing is left.

    ``candidates`` come least recently used first and are read only as far as needed. Chunks for which
    ``in_use`` is true go after all others, again oldest first; those in ``never`` do not go.
    """
    victims: list[Candidate] = []
    spared: list[Candidate] = []
    freed = 0
    for candidate in candidates:
        if freed >= need_bytes or len(victims) >= limit:
            return Choice(victims, [used.chunk for used in spared])
        if candidate.chunk in never:
            continue
        if in_use(candidate.chunk):
            spared.append(candidate)
            continue
        victims.append(candidate)
        freed += candidate.footprint
    kept = len(spared)
    for position, candidate in enumerate(spared):
        if freed >= need_bytes or len(victims) >= limit:
            kept = position
            break
        victims.append(candidate)
        freed += candidate.footprint
    return Choice(victims, [used.chunk for used in spared[kept:]])
