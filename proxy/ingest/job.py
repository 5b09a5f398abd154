"""One layer to ingest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastpull.cache.digest import Digest


@dataclass(frozen=True, slots=True)
class LayerJob:
    """A layer's blob in a file, perhaps still growing, and what its content has to be.

    The blob's own digest is the business of whoever downloads it; ``verify_blob`` is for files that nobody checked.
    """

    path: Path
    blob_bytes: int  # when it is complete
    media_type: str
    diff_id: Digest
    verify_blob: Digest | None = None
