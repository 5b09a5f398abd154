"""Reading a file while somebody else is still writing it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from fastpull.proxy.ingest.crew import StoppedError

_READ_BYTES = 256 << 10


class GrowingFile:
    """The pieces of a file of ``size`` bytes, each as soon as ``grow`` has announced it.

    To be iterated once, on one thread; ``grow`` and ``stop`` come from others. ``progress`` is told how
    many bytes have been taken. Raise ``OSError`` for a file that is shorter than announced.
    """

    def __init__(self, path: Path, size: int, progress: Callable[[int], None]) -> None:
        self._path = path
        self._size = size
        self._progress = progress
        self._changed = threading.Condition()
        self._available = 0
        self._is_stopped = False

    def grow(self, available: int) -> None:
        """The first ``available`` bytes may be read now."""
        with self._changed:
            self._available = max(self._available, min(available, self._size))
            self._changed.notify_all()

    def stop(self) -> None:
        """Make the reader raise ``StoppedError``."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[bytes]:
        offset = 0
        with self._path.open("rb", buffering=0) as file:
            while offset < self._size:
                piece = file.read(min(_READ_BYTES, self._wait(offset) - offset))
                if not piece:
                    raise OSError(f"{self._path} ends after {offset} bytes, {self._size} were announced")
                yield piece
                offset += len(piece)
                self._progress(offset)

    def _wait(self, offset: int) -> int:
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or self._available > offset)
            if self._is_stopped:
                raise StoppedError
            return self._available
