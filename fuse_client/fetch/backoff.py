"""How long to wait before trying again. Pure."""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST_SECONDS = 0.1
CEILING_SECONDS = 5.0


def backoff(attempt: int, *, uniform: Callable[[float, float], float] = random.uniform) -> float:
    """Seconds before attempt ``attempt`` (1 = first retry): doubling up to a ceiling, the upper half of it random.

    The jitter keeps a fleet that lost its proxy at one moment from coming back at one moment.
    """
    limit = min(CEILING_SECONDS, FIRST_SECONDS * 2.0 ** min(attempt - 1, 16))
    return uniform(limit / 2, limit)
