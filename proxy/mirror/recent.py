"""What is remembered for a moment."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from time import monotonic
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """At most ``limit`` values, each for ``seconds``. The oldest goes first."""

    def __init__(self, seconds: float, *, limit: int = 4096, clock: Callable[[], float] = monotonic) -> None:
        self._seconds = seconds
        self._limit = limit
        self._clock = clock
        self._values: OrderedDict[K, tuple[float, V]] = OrderedDict()

    def get(self, key: K) -> V | None:
        until, value = self._values.get(key, (0.0, None))
        if value is None:
            return None
        if self._clock() >= until:
            del self._values[key]
            return None
        return value

    def put(self, key: K, value: V) -> None:
        self._values.pop(key, None)
        if self._seconds <= 0:
            return
        self._values[key] = (self._clock() + self._seconds, value)
        if len(self._values) > self._limit:
            self._values.popitem(last=False)

    def pop(self, key: K) -> None:
        self._values.pop(key, None)
