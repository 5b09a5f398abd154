"""Spans: everything that is wanted lies in one, in order, and little else does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fastpull.cache.spans import Span, joined

PLACES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1 << 20), st.integers(1, 1 << 18)), max_size=12)


@given(PLACES)
def test_spans_hold_all_places_in_order(places: list[tuple[int, int, int]]) -> None:
    """Each place lies in a span not before that of the place before it."""
    spans = joined(places)

    at = 0
    for segment, offset, length in places:
        while not (spans[at].segment == segment and spans[at].start <= offset and offset + length <= spans[at].end):
            at += 1
    assert len(spans) <= len(places)


def test_a_gap_is_read_through_while_it_is_small() -> None:
    """64 KiB are; more, another segment and what lies before begin another span."""
    near, far = (1, 100 + 65536, 50), (1, 300_000, 10)

    assert joined([(1, 0, 100), near, far, (2, 300_010, 5), (2, 0, 5)]) == [
        Span(1, 0, 65686),
        Span(1, 300_000, 300_010),
        Span(2, 300_010, 300_015),
        Span(2, 0, 5),
    ]
