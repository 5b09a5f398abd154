"""URLs out of texts from outside."""

from __future__ import annotations

from yarl import URL


def parse_url(text: str, *, encoded: bool = False) -> URL:
    """Raise ``ValueError`` for what is no URL. yarl itself raises ``IndexError`` for some, such as ``0://[]@``."""
    try:
        return URL(text, encoded=encoded)
    except IndexError as exc:
        raise ValueError(f"{text[:80]!r} is no URL") from exc
