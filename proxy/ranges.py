"""Byte ranges: what clients ask for and what upstreams say they send. Pure (RFC 9110, section 14)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

from fastpull.proxy.errors import RangeNotSatisfiableError

MAX_OFFSET = 2**63 - 1
_RANGE = re.compile(r"bytes[ \t]*=[ \t]*(\d{0,19})[ \t]*-[ \t]*(\d{0,19})[ \t]*", re.ASCII | re.IGNORECASE)
_CONTENT_RANGE = re.compile(r"bytes[ \t]+(?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19}|\*)", re.ASCII | re.IGNORECASE)


class ByteRange(NamedTuple):
    """Bytes ``start`` to before ``stop``."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class RequestedRange:
    """A range as asked for, before the size of the body is known. One of the two may be absent, not both."""

    first: int | None
    last: int | None
    header: str

    @property
    def is_open(self) -> bool:
        """``bytes=n-``: the client wants the rest, or will hang up when it has enough."""
        return self.last is None

    def resolve(self, size: int) -> ByteRange:
        """Fit the range to a body of ``size`` bytes. Raise ``RangeNotSatisfiableError``."""
        if self.first is None:  # 14.1.2, suffix-range: the last n bytes
            start, stop = max(0, size - (self.last or 0)), size
        else:
            start, stop = self.first, size if self.last is None else min(size, self.last + 1)
        if start >= stop:
            raise RangeNotSatisfiableError(self.header, size)
        return ByteRange(start, stop)


def parse_range(header: str | None) -> RequestedRange | None:
    """Read a Range header; ``None`` = send the whole body.

    RFC 9110, 14.2: a server may ignore a Range that it can not parse or does not support, so malformed
    ranges and several ranges at once give the whole body, not an error.
    """
    match = _RANGE.fullmatch(header) if header else None
    if match is None or header is None:
        return None
    first, last = (int(group) if group else None for group in match.groups())
    if first is None and last is None:
        return None
    if first is not None and last is not None and last < first:
        return None  # 14.1.1: such a range is invalid
    if max(first or 0, last or 0) > MAX_OFFSET:
        return None
    return RequestedRange(first, last, header)


@dataclass(frozen=True, slots=True)
class ContentRange:
    """What an answer of 206 (or, without a range, 416) says about itself."""

    range: ByteRange | None
    size: int | None


def parse_content_range(header: str | None) -> ContentRange | None:
    """Read a Content-Range header; ``None`` = absent or nonsense."""
    match = _CONTENT_RANGE.fullmatch(header.strip()) if header else None
    if match is None:
        return None
    first, last, total = match.groups()
    size = None if total == "*" else int(total)
    if first is None:
        return None if size is None else ContentRange(None, size)
    span = ByteRange(int(first), int(last) + 1)
    if span.start >= span.stop or (size is not None and span.stop > size):
        return None
    return ContentRange(span, size)
