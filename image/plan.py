"""What starts teach: traces of a chain merge into a plan, and a chain without traces inherits one. Pure.

A ``LearnedPlan`` keeps two figures for each chunk: its *weight*, the share of the starts that touched it, and
its *rank*, how many chunks those starts had needed before it. Both are means in which a new start counts
1/starts, but never less than ``MIN_SHARE``: five starts are as good as a thousand old ones, and what an
image no longer needs fades out. Ranks and not times are averaged, as times depend on how fast a node was.

Plans never change what a file holds, and traces come from nodes: whatever is wrong in them is left out, and
``Limits`` bound the work and the memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import msgspec

from fastpull.cache.digest import CHUNK_ID_BYTES, ChunkId
from fastpull.cache.wire import Plan, Trace
from fastpull.image.chunk_map import ChunkMap
from fastpull.image.errors import IndexFormatError

MIN_SHARE = 0.2  # of the newest start in the means
MIN_WEIGHT = 0.1  # below, a chunk is forgotten: after eight starts without it, or three if only one ever had it
VERSION = 1


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How large a plan may become."""

    max_chunks: int = 65_536
    max_bytes: int = 8 * 2**30  # uncompressed
    max_traces: int = 1000  # looked at in one merge
    max_trace_chunks: int = 200_000  # looked at in one trace
    max_candidates: int = 256  # looked at for inheritance


DEFAULT_LIMITS = Limits()


class LearnedPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What is stored of a chain. The three sequences run in parallel, in plan order."""

    chain_id: str
    version: int = VERSION
    starts: int = 0  # traces merged
    inherited_from: str = ""  # chainID; of what was learned elsewhere before the first start here
    ids: bytes = b""  # 32 bytes each
    weights: bytes = b""  # f64 each, little-endian, 0 … 1
    ranks: bytes = b""  # f64 each, little-endian

    def __len__(self) -> int:
        return len(self.ids) // CHUNK_ID_BYTES

    def chunks(self) -> Iterator[ChunkId]:
        return map(ChunkId, _split(self.ids))

    def plan(self) -> Plan:
        """What nodes get."""
        return Plan(
            chain_id=self.chain_id,
            chunks=tuple(chunk.hex() for chunk in self.chunks()),
            starts=self.starts,
            inherited_from=self.inherited_from,
        )

    @staticmethod
    def of(plan: Plan, chunks: ChunkMap, limits: Limits = DEFAULT_LIMITS) -> LearnedPlan:
        """A plan from elsewhere, as if every start had needed its chunks in this order."""
        found = _Figures()
        for rank, index in enumerate(_known(plan.chunks, chunks, limits)):
            found.set(index, 1.0, rank)
        return found.learned(plan.chain_id, plan.starts, plan.inherited_from, chunks, limits)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A chain that has learned something."""

    learned: LearnedPlan
    repository: str  # registry and name, without tag


def merge(
    traces: Iterable[Trace],
    previous: LearnedPlan | None,
    *,
    chain_id: str,
    chunks: ChunkMap,
    limits: Limits = DEFAULT_LIMITS,
) -> LearnedPlan:
    """Learn from ``traces``, oldest first, on top of ``previous``; what ``chunks`` does not hold is left out.

    Raise ``IndexFormatError`` for a ``previous`` of a newer version or with damaged figures.
    """
    figures = _Figures()
    starts, inherited_from = 0, ""
    if previous is not None:
        figures.add_all(previous, chunks, limits)
        starts, inherited_from = previous.starts, previous.inherited_from
    for trace in islice(traces, limits.max_traces):
        needed = list(_known(trace.chunks, chunks, limits))
        if not needed:
            continue
        # An inherited plan counts as one start.
        before = starts + 1 if inherited_from else starts
        figures.learn(needed, max(1 / (before + 1), MIN_SHARE), is_whole=trace.ended_by != "unmount")
        starts += 1
    return figures.learned(chain_id, starts, inherited_from, chunks, limits)


def inherit(
    candidates: Iterable[Candidate],
    *,
    chain_id: str,
    repository: str,
    chunks: ChunkMap,
    limits: Limits = DEFAULT_LIMITS,
) -> LearnedPlan | None:
    """The plan of the most similar candidate, as far as ``chunks`` still holds it; ``None`` if nothing is shared.

    The same repository comes first, then who shares most bytes, then who has seen most starts. Candidates
    that are damaged, or the chain itself, are passed over.
    """
    best: tuple[tuple[bool, int, int], LearnedPlan] | None = None
    for candidate in islice(candidates, limits.max_candidates):
        if candidate.learned.chain_id == chain_id:
            continue
        figures = _Figures()
        try:
            figures.add_all(candidate.learned, chunks, limits)
        except IndexFormatError:
            continue
        shared = sum(map(chunks.size_at, figures.of))
        merit = (candidate.repository == repository, shared, candidate.learned.starts)
        if shared and (best is None or merit > best[0]):
            origin = candidate.learned.chain_id
            best = merit, figures.learned(chain_id, 0, origin, chunks, limits)
    return best[1] if best is not None else None


def with_counterparts(
    inherited: LearnedPlan,
    origin: LearnedPlan,
    counterparts: Callable[[ChunkId], Iterable[int]],
    *,
    chunks: ChunkMap,
    limits: Limits = DEFAULT_LIMITS,
) -> LearnedPlan:
    """What was inherited of ``origin``, and for each chunk that this chain lacks those that stand in its stead.

    ``counterparts`` names them by their place in ``chunks``. Raise ``IndexFormatError`` for damaged figures.
    """
    figures = _Figures()
    figures.add_all(inherited, chunks, limits)
    for chunk, weight, rank in _rows(origin, limits):
        if chunks.index_of(chunk) is None:
            for place in counterparts(chunk):
                first = chunks.index_of(chunks.id_at(place))
                if first is not None and first not in figures.of:
                    figures.set(first, weight, rank)
    return figures.learned(inherited.chain_id, 0, inherited.inherited_from, chunks, limits)


class _Figures:
    """Weight and rank of each chunk, by its first place in the chunk map."""

    def __init__(self) -> None:
        self.of: dict[int, tuple[float, float]] = {}

    def set(self, index: int, weight: float, rank: float) -> None:
        self.of[index] = (weight, rank)

    def add_all(self, learned: LearnedPlan, chunks: ChunkMap, limits: Limits) -> None:
        """Take over what was learned. Raise ``IndexFormatError`` for figures that are none."""
        for chunk, weight, rank in _rows(learned, limits):
            index = chunks.index_of(chunk)
            if index is not None:
                self.set(index, weight, rank)

    def learn(self, needed: list[int], share: float, *, is_whole: bool) -> None:
        """Count one start. One that was cut short says nothing of the chunks that it had not come to."""
        seen = set(needed)
        for index, (weight, rank) in list(self.of.items()):
            if index in seen or (not is_whole and rank >= len(needed)):
                continue
            if weight * (1 - share) < MIN_WEIGHT:
                del self.of[index]
            else:
                self.set(index, weight * (1 - share), rank)
        for position, index in enumerate(needed):
            weight, rank = self.of.get(index, (0.0, 0.0))
            new_weight = weight * (1 - share) + share
            self.set(index, new_weight, (weight * (1 - share) * rank + share * position) / new_weight)

    def learned(self, chain_id: str, starts: int, origin: str, chunks: ChunkMap, limits: Limits) -> LearnedPlan:
        """Cut to ``limits`` (rare chunks go first, then late ones) and put in order."""
        kept: list[int] = []
        total = 0
        for index in sorted(self.of, key=lambda index: (-self.of[index][0], self.of[index][1], index)):
            total += chunks.size_at(index)
            if len(kept) >= limits.max_chunks or total > limits.max_bytes:
                break
            kept.append(index)
        kept.sort(key=lambda index: (self.of[index][1], -self.of[index][0], index))
        return LearnedPlan(
            chain_id=chain_id,
            starts=starts,
            inherited_from=origin,
            ids=b"".join(map(chunks.id_at, kept)),
            weights=array("d", (self.of[index][0] for index in kept)).tobytes(),
            ranks=array("d", (self.of[index][1] for index in kept)).tobytes(),
        )


def _rows(learned: LearnedPlan, limits: Limits) -> Iterator[tuple[ChunkId, float, float]]:
    """Chunk, weight and rank. Raise ``IndexFormatError`` for figures that are none."""
    weights, ranks = array("d"), array("d")
    if learned.version != VERSION or len(learned.weights) != len(learned.ranks):
        raise IndexFormatError(f"a plan of version {learned.version} with {len(learned.ids)} bytes of ids")
    if len(learned.weights) % 8 or len(learned.ids) != len(learned.weights) // 8 * CHUNK_ID_BYTES:
        raise IndexFormatError(f"{len(learned.ids)} bytes of ids, {len(learned.weights)} of weights")
    weights.frombytes(learned.weights)
    ranks.frombytes(learned.ranks)
    for chunk, weight, rank in islice(zip(learned.chunks(), weights, ranks, strict=True), limits.max_chunks):
        if not (0 <= weight <= 1 and 0 <= rank <= 2**32):  # also not a number
            raise IndexFormatError(f"a plan with the weight {weight} and the rank {rank}")
        yield chunk, weight, rank


def _known(ids: Iterable[str], chunks: ChunkMap, limits: Limits) -> Iterator[int]:
    """The first places of the chunks that exist, each once, in order."""
    seen: set[int] = set()
    for text in islice(ids, limits.max_trace_chunks):
        try:
            chunk = ChunkId(bytes.fromhex(text[: 2 * CHUNK_ID_BYTES + 1]))
        except ValueError:
            continue
        index = chunks.index_of(chunk) if len(chunk) == CHUNK_ID_BYTES else None
        if index is not None and index not in seen:
            seen.add(index)
            yield index


def _split(ids: bytes) -> Iterator[bytes]:
    return (ids[at : at + CHUNK_ID_BYTES] for at in range(0, len(ids), CHUNK_ID_BYTES))
