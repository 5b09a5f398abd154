"""What is done about a tag whose digest we know. Pure."""

from __future__ import annotations

import enum

import msgspec


class TagRecord(msgspec.Struct, frozen=True):
    """What upstream said of a tag. Times are seconds since the epoch."""

    digest: str
    media_type: str
    size: int
    checked_at: float


class Freshness(enum.Enum):
    FRESH = "answer from here"
    DUE = "ask upstream with HEAD, answer from here if it can not be asked"
    TOO_OLD = "only upstream's word counts"


def freshness(record: TagRecord | None, now: float, ttl_seconds: float, max_stale_seconds: float) -> Freshness:
    """A clock that was set back makes a record due, not fresh for ever."""
    if record is None:
        return Freshness.TOO_OLD
    age = now - record.checked_at
    if 0 <= age < ttl_seconds:
        return Freshness.FRESH
    return Freshness.DUE if age < ttl_seconds + max_stale_seconds else Freshness.TOO_OLD
