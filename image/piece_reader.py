"""Reading fields out of a stream that arrives in pieces. Pure."""

from __future__ import annotations

from collections.abc import Iterable


class PieceReader:
    """What was received and not yet consumed is ``rest``; it is replaced by the next piece when it is used up."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")

    def rest(self) -> memoryview:
        """The next bytes, as many as are here; empty only at the end."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                break
            self._rest = memoryview(piece)
        return self._rest

    def consume(self, size: int) -> None:
        """Go on behind the first ``size`` bytes of ``rest``."""
        self._rest = self._rest[size:]

    def put_back(self, data: bytes) -> None:
        """Let the stream go on with ``data``, the end of what was consumed last."""
        self._rest = memoryview(data + self._rest if self._rest else data)

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes, or what there is before the end."""
        data = bytes(self.rest()[:size])
        self.consume(len(data))
        while len(data) < size and (more := self.rest()[: size - len(data)]):
            data += more
            self.consume(len(more))
        return data
