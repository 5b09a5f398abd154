"""Plans are learned from starts, fade, and are handed on to the next tag."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpull.cache.digest import ChunkId, chunk_id
from fastpull.cache.wire import Plan, Trace
from fastpull.image import chunk_map
from fastpull.image.chunk_map import ChunkMap
from fastpull.image.errors import IndexFormatError
from fastpull.image.plan import Candidate, LearnedPlan, Limits, inherit, merge, with_counterparts

CHAIN = "sha256:" + "c" * 64
OTHER = "sha256:" + "d" * 64
IDS = [chunk_id(b"%d" % number) for number in range(40)]


def device(*numbers: int, size: int = 100) -> ChunkMap:
    """A device that holds the chunks with these numbers."""
    places = [(place * size, size, IDS[number]) for place, number in enumerate(numbers)]
    return ChunkMap.open(chunk_map.pack(places, len(numbers) * size))


ALL = device(*range(40))


def start(*numbers: int, **more: object) -> Trace:
    return Trace(chain_id=CHAIN, chunks=tuple(IDS[number].hex() for number in numbers), **more)


def learned(*traces: Trace, previous: LearnedPlan | None = None, chunks: ChunkMap = ALL, **limits: int) -> LearnedPlan:
    return merge(traces, previous, chain_id=CHAIN, chunks=chunks, limits=Limits(**limits))


def order(plan: LearnedPlan) -> list[int]:
    return [IDS.index(chunk) for chunk in plan.chunks()]


def test_the_first_start_is_the_plan() -> None:
    """In the order of first need, each chunk once."""
    plan = learned(start(5, 3, 5, 9, 3))
    assert order(plan) == [5, 3, 9]
    assert (plan.starts, plan.chain_id, len(plan)) == (1, CHAIN, 3)


def test_order_is_that_of_most_starts() -> None:
    """One start that did things the other way round does not turn the plan."""
    assert order(learned(start(1, 2, 3), start(1, 2, 3), start(3, 2, 1))) == [1, 2, 3]


def test_merging_one_by_one_is_merging_all() -> None:
    """What is stored between two starts loses nothing that counts."""
    traces = [start(1, 2, 3, 4), start(2, 1, 5), start(1, 3, 4), start(6, 1, 2)]
    step = None
    for trace in traces:
        step = learned(trace, previous=step)
    assert step is not None
    assert order(step) == order(learned(*traces))
    assert step.starts == 4


def test_a_chunk_of_one_start_fades_out() -> None:
    """What only one of many starts touched is forgotten, and sooner the more starts there are."""
    plan = learned(start(1, 2), *[start(1)] * 7)
    assert order(plan) == [1, 2]
    assert order(learned(start(1), previous=plan)) == [1]
    plan = learned(*[start(1)] * 20, start(1, 2))
    assert order(plan) == [1, 2]
    assert order(learned(*[start(1)] * 4, previous=plan)) == [1]


def test_a_chunk_that_starts_need_again_and_again_stays() -> None:
    plan = learned(*[start(1, 2), start(1)] * 30)
    assert order(plan) == [1, 2]


def test_an_image_that_changes_its_ways_is_learned_anew() -> None:
    """After a thousand starts of one kind a dozen of another make the plan."""
    plan = learned(*[start(1, 2, 3)] * 500, *[start(7, 8)] * 12)
    assert order(plan) == [7, 8]


def test_a_start_cut_short_says_nothing_of_what_it_did_not_reach() -> None:
    """A container that dies at once does not make the plan forget the rest."""
    plan = learned(start(*range(10)), *[start(0, 1, ended_by="unmount")] * 30)
    assert order(plan) == list(range(10))
    assert order(learned(start(*range(10)), *[start(0, 1)] * 30)) == [0, 1]


def test_chunks_that_the_chain_does_not_hold_are_left_out() -> None:
    assert order(learned(start(1, 30, 2), chunks=device(1, 2, 3))) == [1, 2]
    plan = learned(start(1, 30, 2))
    assert order(learned(start(2), previous=plan, chunks=device(1, 2, 3))) == [1, 2]


def test_a_trace_without_any_chunk_counts_for_nothing() -> None:
    plan = learned(start(1, 2))
    assert learned(start(), start(39), previous=plan, chunks=device(1, 2)) == plan


@pytest.mark.parametrize(
    "text", ["", "zz", "é" * 64, "00", "0" * 62, "0" * 66, "0" * 10**6, IDS[1].hex()[:-2], " " * 64]
)
def test_text_that_is_no_chunk_id_is_left_out(text: str) -> None:
    trace = Trace(chain_id=CHAIN, chunks=(text, IDS[2].hex(), text))
    assert order(learned(trace)) == [2]


def test_the_size_of_a_plan_has_limits() -> None:
    """Rare chunks go first, then late ones; the order of what stays is kept."""
    traces = [start(9, *range(8)), start(*range(8))]
    assert order(learned(*traces, max_chunks=3)) == [0, 1, 2]
    assert order(learned(*traces, max_bytes=450)) == [0, 1, 2, 3]
    assert order(learned(*traces)) == [9, *range(8)]


def test_only_so_much_of_a_trace_is_looked_at() -> None:
    endless = (*(IDS[number % 3].hex() for number in range(100_000)), IDS[9].hex())
    assert order(learned(Trace(chain_id=CHAIN, chunks=endless), max_trace_chunks=1000)) == [0, 1, 2]
    consumed = []

    def many() -> object:
        for number in range(100):
            consumed.append(number)
            yield start(1)

    merge(many(), None, chain_id=CHAIN, chunks=ALL, limits=Limits(max_traces=10))  # type: ignore[arg-type]
    assert len(consumed) <= 11


def test_a_plan_is_what_nodes_get_and_can_be_given_back() -> None:
    plan = learned(start(4, 2, 7)).plan()
    assert plan == Plan(chain_id=CHAIN, chunks=tuple(IDS[n].hex() for n in (4, 2, 7)), starts=1)
    assert order(LearnedPlan.of(plan, ALL)) == [4, 2, 7]
    assert order(LearnedPlan.of(plan, device(2, 4))) == [4, 2]
    assert LearnedPlan.of(plan, ALL).starts == 1


def test_a_learned_plan_survives_storage() -> None:
    plan = learned(start(1, 2), start(2, 3))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(plan), type=LearnedPlan) == plan


def nan(count: int) -> bytes:
    return struct.pack(f"<{count}d", *[float("nan")] * count)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"weights": b""},
        {"ranks": b"\0" * 4},
        {"ids": b"short"},
        {"weights": b"\0" * 15, "ranks": b"\0" * 15},
        {"weights": nan(2)},
        {"ranks": nan(2)},
        {"weights": struct.pack("<2d", 1.0, 1.5)},
        {"ranks": struct.pack("<2d", -1.0, 0.0)},
        {"ranks": struct.pack("<2d", float("inf"), 0.0)},
    ],
    ids="-".join,
)
def test_damaged_figures_are_refused_and_never_inherited(change: dict[str, object]) -> None:
    damaged = msgspec.structs.replace(learned(start(1, 2)), **change)
    with pytest.raises(IndexFormatError):
        learned(start(1), previous=damaged)
    other = msgspec.structs.replace(damaged, chain_id="sha256:" + "d" * 64)
    assert inherit([Candidate(other, "r")], chain_id=CHAIN, repository="r", chunks=ALL) is None


def candidate(name: str, repository: str, *traces: Trace) -> Candidate:
    return Candidate(merge(traces, None, chain_id=name, chunks=ALL), repository)


def test_the_next_tag_inherits_what_it_still_holds() -> None:
    """The plan of the last tag, in its order, without the chunks that are gone."""
    plan = inherit(
        [candidate("old", "repo", start(5, 1, 2, 3))], chain_id=CHAIN, repository="repo", chunks=device(1, 2, 3, 4)
    )
    assert plan is not None
    assert order(plan) == [1, 2, 3]
    assert (plan.chain_id, plan.inherited_from, plan.starts) == (CHAIN, "old", 0)
    assert plan.plan().inherited_from == "old"


def test_the_same_repository_comes_before_more_shared_bytes() -> None:
    candidates = [
        candidate("far", "other", start(1, 2, 3, 4)),
        candidate("near", "repo", start(1, 2)),
        candidate("nearest", "repo", start(1, 2, 3)),
    ]
    plan = inherit(candidates, chain_id=CHAIN, repository="repo", chunks=device(1, 2, 3, 4))
    assert plan is not None
    assert plan.inherited_from == "nearest"
    plan = inherit(candidates, chain_id=CHAIN, repository="third", chunks=device(1, 2, 3, 4))
    assert plan is not None
    assert plan.inherited_from == "far"


def test_among_equals_the_one_with_most_starts_is_taken() -> None:
    candidates = [candidate("few", "r", start(1, 2)), candidate("many", "r", start(1, 2), start(1, 2))]
    plan = inherit(candidates, chain_id=CHAIN, repository="r", chunks=ALL)
    assert plan is not None
    assert plan.inherited_from == "many"


def test_who_shares_nothing_is_no_ancestor() -> None:
    """Nor is a chain its own."""
    nobody = [candidate("x", "repo", start(1, 2)), candidate(CHAIN, "repo", start(7))]
    assert inherit(nobody, chain_id=CHAIN, repository="repo", chunks=device(7, 8)) is None
    assert inherit([], chain_id=CHAIN, repository="repo", chunks=ALL) is None


def test_own_starts_overrule_an_inherited_plan() -> None:
    """It counts as one start, so that it soon fades."""
    plan = inherit([candidate("old", "r", *[start(1, 2, 3)] * 50)], chain_id=CHAIN, repository="r", chunks=ALL)
    plan = learned(start(9, 8), previous=plan)
    assert order(plan)[:2] in ([9, 1], [1, 9])
    assert order(learned(*[start(9, 8)] * 9, previous=plan)) == [9, 8]


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 39), max_size=30),
            st.sampled_from(["settled", "limit", "unmount"]),
            st.integers(0, 3),
        ),
        max_size=12,
    ),
    st.integers(1, 10),
)
def test_any_starts_give_a_plan_within_bounds(starts: list[tuple[list[int], str, int]], max_chunks: int) -> None:
    """Whatever comes: known chunks, each once, not more than allowed, figures that can be learned from again."""
    traces = [start(*numbers, ended_by=ended) for numbers, ended, _ in starts]
    held = device(*range(20))
    plan = learned(*traces, chunks=held, max_chunks=max_chunks)
    found = order(plan)
    assert len(found) == len(set(found)) <= max_chunks
    assert set(found) <= set(range(20)) & {number for numbers, _, _ in starts for number in numbers}
    assert learned(previous=plan, chunks=held, max_chunks=max_chunks) == plan
    assert all(isinstance(chunk, bytes) and ChunkId(chunk) in held for chunk in plan.chunks())


def test_what_stands_where_a_lost_chunk_stood_takes_its_place() -> None:
    """With its weight and its rank; what is shared stays as it is."""
    origin = learned(start(1, 2, 3), start(1, 2, 3))
    newer = device(1, 3, 20, 21)
    shared = inherit([Candidate(origin, "r")], chain_id=OTHER, repository="r", chunks=newer)
    assert shared is not None
    assert order(shared) == [1, 3]

    followed = with_counterparts(shared, origin, {IDS[2]: [2, 3]}.__getitem__, chunks=newer)

    assert order(followed) == [1, 20, 21, 3]
    assert (followed.chain_id, followed.starts, followed.inherited_from) == (OTHER, 0, CHAIN)


def test_a_counterpart_that_is_planned_already_stays_where_it_is() -> None:
    origin = learned(start(1, 2, 3))
    newer = device(3, 1)
    shared = inherit([Candidate(origin, "r")], chain_id=OTHER, repository="r", chunks=newer)
    assert shared is not None

    assert with_counterparts(shared, origin, lambda _: [0, 1], chunks=newer) == shared


def test_counterparts_keep_the_limits() -> None:
    origin = learned(start(1, 2, 3))
    newer = device(1, *range(10, 40))
    shared = inherit([Candidate(origin, "r")], chain_id=OTHER, repository="r", chunks=newer)
    assert shared is not None

    followed = with_counterparts(shared, origin, lambda _: range(1, 31), chunks=newer, limits=Limits(max_chunks=7))

    assert len(followed) == 7
