"""The directory that holds everything the proxy keeps, and the lock that says whose it is."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class DataDirError(Exception):
    """The directory can not be used. ``remedy`` says what to do."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause)
        self.remedy = remedy


@contextmanager
def owned(path: Path) -> Iterator[Path]:
    """Create ``path`` if need be and hold it against other proxies. Raise ``DataDirError``.

    The lock is the kernel's (flock on ``<path>/lock``): it ends with the process, however that ends.
    """
    try:
        path.mkdir(mode=0o750, parents=True, exist_ok=True)
        descriptor = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as exc:
        raise DataDirError(
            f"can not write to {path}: {exc.strerror}",
            "run as a user who may, or name another directory with --data-dir DIR",
        ) from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            raise DataDirError(
                f"{path} is in use by another fastpull-proxy (pid {owner})",
                "stop that one, or name another directory with --data-dir DIR",
            ) from exc
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield path
    finally:
        os.close(descriptor)
