"""Sizes as people write them: ``"20GiB"``, ``"512 MB"``, ``1048576``."""

from __future__ import annotations

import re
from typing import Self

from fastpull.config.errors import ConfigError

MiB = 2**20
GiB = 2**30

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?\s*")
_POWER = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


class ByteSize(int):
    """A number of bytes. ``k``, ``M``, ``G``, ``T`` are powers of 1000, ``Ki`` … ``Ti`` of 1024."""

    @classmethod
    def parse(cls, text: str | int) -> Self:
        """Raise ``ConfigError`` for anything that is no size."""
        if isinstance(text, int) and not isinstance(text, bool) and text >= 0:
            return cls(text)
        match = _SIZE.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise ConfigError(f"{text!r} is no size; write for example 20GiB, 512MB or a number of bytes")
        number, prefix, binary = match.groups()
        return cls(float(number) * (1024 if binary else 1000) ** _POWER[prefix])
