"""What failures of the blob disk mean."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastpull.proxy.errors import BlobStoreError, BlobStoreFullError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise ``OSError`` of the block as ``BlobStoreFullError`` or ``BlobStoreError``."""
    try:
        yield
    except OSError as exc:
        text = f"{path.parent}: {exc.strerror or exc}"
        raise (BlobStoreFullError if exc.errno in _FULL else BlobStoreError)(text) from exc
