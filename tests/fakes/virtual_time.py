"""An event loop whose time passes only when everybody sleeps: an hour of pauses takes milliseconds."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _ImpatientSelector(selectors.DefaultSelector):  # type: ignore[misc, valid-type]  # chosen at run time
    """Does not wait for a time: it says that it has passed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(None if timeout is None else 0)
        if timeout is not None and not events:
            self.now += max(0.0, timeout)
        return events


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """For tasks that wait for each other and for the clock. Work of other threads takes no time here."""

    def __init__(self) -> None:
        self._impatient = _ImpatientSelector()
        super().__init__(self._impatient)

    def time(self) -> float:
        return self._impatient.now


def in_virtual_time(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)
