"""Directory listings that are kept ready."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")

_WEIGHT_OF_A_BLOCK = 1  # also of an empty one, behind the last


class Listings(Generic[T]):
    """Blocks of directories, built on demand; the last used are kept, with at most ``max_entries`` entries.

    Counted by entries, not by blocks: most directories are small, and a walk over a tree that was walked before
    finds all of it, or nothing.
    """

    def __init__(self, build: Callable[[int, int], Sequence[T]], max_entries: int) -> None:
        self._build = build
        self._room = max_entries
        self._kept: OrderedDict[tuple[int, int], Sequence[T]] = OrderedDict()

    def get(self, directory: int, block: int) -> Sequence[T]:
        """What ``build`` gave for it."""
        key = directory, block
        found = self._kept.get(key)
        if found is not None:
            self._kept.move_to_end(key)
            return found
        built = self._kept[key] = self._build(directory, block)
        self._room -= len(built) + _WEIGHT_OF_A_BLOCK
        while self._room < 0 and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._room += len(oldest) + _WEIGHT_OF_A_BLOCK
        return built
