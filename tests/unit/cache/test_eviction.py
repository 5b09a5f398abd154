"""The choice of victims."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from fastpull.cache.digest import ChunkId
from fastpull.cache.eviction import Candidate, choose

candidates = st.lists(st.integers(1, 100), max_size=30).map(
    lambda sizes: [Candidate(ChunkId(bytes([number])), size) for number, size in enumerate(sizes)]
)
some_ids = st.sets(st.integers(0, 30).map(lambda number: ChunkId(bytes([number]))))


@given(candidates, st.integers(0, 2000), some_ids, some_ids, st.integers(1, 40))
def test_the_choice_is_enough_minimal_and_fair(
    offered: list[Candidate], need: int, in_use: set[ChunkId], never: set[ChunkId], limit: int
) -> None:
    """Enough is freed where possible; none more than needed; the idle first, and among equals the oldest."""
    choice = choose(offered, need, in_use=in_use.__contains__, never=never, limit=limit)

    free = [candidate for candidate in offered if candidate.chunk not in never]
    order = sorted(free, key=lambda candidate: candidate.chunk in in_use)  # stable: idle first, each oldest first
    assert order[: len(choice.victims)] == choice.victims
    assert len(choice.victims) <= limit
    if len(choice.victims) < min(limit, len(free)):
        assert choice.freed >= need
    if choice.victims:
        assert choice.freed - choice.victims[-1].footprint < need
    gone = {victim.chunk for victim in choice.victims}
    assert gone.isdisjoint(choice.passed_over)
    assert set(choice.passed_over) <= in_use - never


def test_no_more_is_looked_at_than_needed() -> None:
    """A store of millions is not read through to free one chunk."""
    looked = []

    def endless() -> Iterator[Candidate]:
        for number in range(256):
            looked.append(number)
            yield Candidate(ChunkId(bytes([number])), 10)

    choose(endless(), 25, in_use=lambda _chunk: False)

    assert len(looked) <= 4
