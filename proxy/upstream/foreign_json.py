"""JSON that others wrote."""

from __future__ import annotations

from typing import TypeVar

import msgspec

T = TypeVar("T")


def read_json(body: bytes, kind: type[T]) -> T | None:
    """Decode ``body`` as ``kind``; ``None`` = it is not that.

    Beside its own errors msgspec raises ``UnicodeDecodeError`` for text that is not UTF-8 and
    ``RecursionError`` for a thousand brackets.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
