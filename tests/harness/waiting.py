"""Waiting for a condition, with a bound."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 60.0  # generous: a loaded two-core machine is no failure


def until(
    condition: Callable[[], T],
    what: str,
    *,
    seconds: float = PATIENCE_SECONDS,
    every: float = 0.05,
    ignore: tuple[type[Exception], ...] = (),
) -> T:
    """Return the first true value of ``condition()``. Exceptions in ``ignore`` mean "not yet"."""
    deadline = time.monotonic() + seconds
    while True:
        last: object = "it is false"
        try:
            if value := condition():
                return value
        except ignore as exc:
            last = exc
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:.0f} s ({last})")
        time.sleep(every)
