"""In which order the pieces of a blob are fetched. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from fastpull.proxy.mirror.spans import Spans
from fastpull.proxy.ranges import ByteRange


class FillPlan:
    """Hands out pieces: first what a reader waits for, then the first hole.

    Invariant: a byte is handed out at most once, unless it was given back.
    """

    def __init__(self, size: int, piece_bytes: int, present: Iterable[ByteRange] = ()) -> None:
        self.size = size
        self._piece_bytes = piece_bytes
        self._taken = Spans()
        for span in present:
            self._taken.add(*span)

    def take(self, wanted: Iterable[int] = ()) -> ByteRange | None:
        """The next piece; ``None`` = all is handed out. ``wanted`` are offsets at which readers wait."""
        for offset in wanted:
            if offset < self.size and self._taken.end_from(offset) == offset:
                return self._piece_at(offset)
        gap = next(self._taken.gaps(0, self.size), None)
        return self._piece_at(gap.start) if gap is not None else None

    def take_exactly(self, piece: ByteRange) -> None:
        self._taken.add(*piece)

    def give_back(self, piece: ByteRange) -> None:
        self._taken.discard(*piece)

    def _piece_at(self, start: int) -> ByteRange:
        # Up to the next multiple of the piece size, so that pieces line up after a reader's odd offset.
        stop = min(self.size, (start // self._piece_bytes + 1) * self._piece_bytes)
        following = self._taken.next_from(start)
        piece = ByteRange(start, stop if following is None else min(stop, following))
        self._taken.add(*piece)
        return piece
