"""Which bytes of a file are there. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from fastpull.proxy.ranges import ByteRange


class Spans:
    """A set of byte positions, kept as sorted runs that neither overlap nor touch."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def __iter__(self) -> Iterator[ByteRange]:
        return map(ByteRange, self._starts, self._stops)

    @property
    def total(self) -> int:
        return sum(self._stops) - sum(self._starts)

    def add(self, start: int, stop: int) -> None:
        if start >= stop:
            return
        low = bisect_left(self._stops, start)  # the first run that touches or follows
        high = bisect_right(self._starts, stop)  # behind the last run that touches
        if low < high:
            start, stop = min(start, self._starts[low]), max(stop, self._stops[high - 1])
        self._starts[low:high] = [start]
        self._stops[low:high] = [stop]

    def discard(self, start: int, stop: int) -> None:
        if start >= stop:
            return
        low = bisect_right(self._stops, start)  # the first run that ends behind start
        high = bisect_left(self._starts, stop)  # behind the last run that begins before stop
        if low >= high:
            return
        kept = [(self._starts[low], start), (stop, self._stops[high - 1])]
        kept = [(a, b) for a, b in kept if a < b]
        self._starts[low:high] = [a for a, _ in kept]
        self._stops[low:high] = [b for _, b in kept]

    def end_from(self, offset: int) -> int:
        """The end of the run that holds ``offset``; ``offset`` itself when it is not there."""
        index = bisect_right(self._starts, offset) - 1
        return max(offset, self._stops[index]) if index >= 0 else offset

    def next_from(self, offset: int) -> int | None:
        """Where the first run begins that starts at or behind ``offset``."""
        index = bisect_left(self._starts, offset)
        return self._starts[index] if index < len(self._starts) else None

    def gaps(self, start: int, stop: int) -> Iterator[ByteRange]:
        """The holes between ``start`` and ``stop``, in order."""
        while start < stop:
            start = self.end_from(start)
            following = self.next_from(start)
            end = stop if following is None else min(stop, following)
            if start < end:
                yield ByteRange(start, end)
            start = end
