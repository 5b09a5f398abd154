"""When a process that died is started again. Pure."""

from __future__ import annotations

_FIRST_SECONDS = 0.2
_MOST_SECONDS = 30.0
_GOOD_SECONDS = 60.0  # who lived so long did not die of its settings


class Restarts:
    """Doubling pauses, beginning anew after a process that lived for a while."""

    def __init__(self) -> None:
        self._next = _FIRST_SECONDS

    def pause(self, lived_seconds: float) -> float:
        """How long to wait after a process that lived so long."""
        if lived_seconds >= _GOOD_SECONDS:
            self._next = _FIRST_SECONDS
        pause = self._next
        self._next = min(_MOST_SECONDS, 2 * pause)
        return pause
