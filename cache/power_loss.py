"""Knowing, after a power loss, that an index which was not flushed can not be trusted."""

from __future__ import annotations

import os
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAME = "unflushed"


def boot_id() -> bytes:
    """Differs from boot to boot, and only then."""
    return _BOOT_ID.read_bytes().strip()


def sync_directory(directory: Path) -> None:
    """Make the names of new files survive a power loss."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class UnflushedMarker:
    """The file ``unflushed``: there, and naming this boot, exactly while commits may not be on disk.

    LMDB without flushes reuses pages that the state on disk still needs, so a power loss can leave an index
    that is not even readable. Set it before a commit and clear it after a flush, both inside a write
    transaction: that makes the two exclude each other among all processes.
    """

    def __init__(self, directory: Path) -> None:
        self._file = directory / _NAME

    @property
    def is_set(self) -> bool:
        return self._file.exists()

    def set(self) -> None:
        if self._file.exists():
            return
        with self._file.open("wb") as file:
            file.write(boot_id())
            file.flush()
            os.fsync(file.fileno())
        sync_directory(self._file.parent)

    def clear(self) -> None:
        self._file.unlink(missing_ok=True)

    def tells_of_power_loss(self) -> bool:
        """Whether it was set in an earlier boot, so that nothing of the store can be trusted."""
        try:
            return self._file.read_bytes() != boot_id()
        except FileNotFoundError:
            return False
