"""What was served lately is remembered in bounded memory; what was not is forgotten in time."""

from __future__ import annotations

import random

from fastpull.cache.digest import ChunkId
from fastpull.proxy.recently_served import RecentlyServed


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def chunks(count: int, seed: int) -> list[ChunkId]:
    source = random.Random(seed)
    return [ChunkId(source.randbytes(32)) for _ in range(count)]


def test_what_was_added_is_there_for_one_to_two_periods() -> None:
    clock = Clock()
    recent = RecentlyServed(bits=1 << 12, period_seconds=10, clock=clock)
    first, second = chunks(2, 1)

    recent.add([first])
    clock.now = 11
    recent.add([second])
    assert first in recent
    assert second in recent
    clock.now = 21
    recent.add([])
    assert first not in recent
    assert second in recent


def test_after_a_long_silence_nothing_is_recent() -> None:
    clock = Clock()
    recent = RecentlyServed(bits=1 << 12, period_seconds=10, clock=clock)
    (chunk,) = chunks(1, 1)
    recent.add([chunk])

    clock.now = 10_000
    recent.add([])

    assert chunk not in recent


def test_few_others_count_by_mistake() -> None:
    recent = RecentlyServed(bits=1 << 15)
    recent.add(chunks(1000, 1))

    assert all(chunk in recent for chunk in chunks(1000, 1))
    assert sum(chunk in recent for chunk in chunks(1000, 2)) < 10
