"""How long a reader waited, and for what. Apart from the fetcher: who only reads what is local needs no HTTP."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Waited:
    """What a read waited for, in seconds, along its slowest chunk."""

    queue: float = 0.0  # until a request for it went out
    fetch: float = 0.0  # until its bytes were here
    inflate: float = 0.0  # until they were decompressed and verified
    disk: float = 0.0  # local, but not in memory
