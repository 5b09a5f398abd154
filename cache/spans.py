"""Where chunks lie in the segments, joined to what a disk likes to read at once. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

_GAP = 64 * 1024  # read through rather than around


class Span(NamedTuple):
    """Bytes ``start`` to ``end`` of a segment."""

    segment: int
    start: int
    end: int


def joined(places: Iterable[tuple[int, int, int]]) -> list[Span]:
    """Segment, offset and length of each chunk, in the order of use; what follows closely becomes one span."""
    spans: list[Span] = []
    for segment, offset, length in places:
        if spans and segment == spans[-1].segment and 0 <= offset - spans[-1].end <= _GAP:
            spans[-1] = Span(segment, spans[-1].start, offset + length)
        else:
            spans.append(Span(segment, offset, offset + length))
    return spans
