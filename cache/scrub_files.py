"""Scrubbing files that have a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Generator
from pathlib import Path

from fastpull.cache.scrub import STEP_BYTES, Step


def sha256_in_steps(path: Path) -> Generator[Step, None, str]:
    """Read the file, a step for each MiB; return the sha256 as hex digits. Raise ``OSError``."""
    seen = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(STEP_BYTES):
            seen.update(block)
            yield Step(len(block))
    return seen.hexdigest()
