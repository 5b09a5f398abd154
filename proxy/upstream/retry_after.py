"""Retry-After headers. Pure (RFC 9110, 10.2.3)."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime

_LONGEST_SECONDS = 86400.0


def parse_retry_after(header: str | None, now: float | None = None) -> float | None:
    """Seconds to wait, at most a day; ``None`` = absent or nonsense. ``now`` in seconds since the epoch."""
    if not header:
        return None
    text = header.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:10]), _LONGEST_SECONDS)
    try:
        moment = parsedate_to_datetime(text)
        seconds = moment.timestamp() - (time.time() if now is None else now)
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, seconds), _LONGEST_SECONDS)
