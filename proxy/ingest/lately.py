"""Has this just been seen? 500 nodes that pull one image need not have it learned 500 times."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

_SECONDS = 10.0
_MOST = 4096


class Lately:
    """Remembers keys for some seconds, a bounded number of them."""

    def __init__(self, clock: Callable[[], float], *, seconds: float = _SECONDS, most: int = _MOST) -> None:
        self._clock = clock
        self._seconds = seconds
        self._most = most
        self._seen: OrderedDict[str, float] = OrderedDict()  # oldest first

    def is_new(self, key: str) -> bool:
        """False when the same was asked within the last seconds."""
        now = self._clock()
        last = self._seen.get(key)
        if last is not None and now - last < self._seconds:
            return False
        self._seen[key] = now
        self._seen.move_to_end(key)
        while len(self._seen) > self._most:
            self._seen.popitem(last=False)
        return True
