"""What a directory tree takes on disk, as containerd's ``fs.DiskUsage`` counts it."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from fastpull.fuse_client.snapshotter.errors import SnapshotCancelledError
from fastpull.fuse_client.snapshotter.records import Usage

_BLOCK_BYTES = 512  # stat(2): st_blocks counts these, whatever the file system's block
_ENTRIES_BETWEEN_CHECKS = 1000

# kubelet asks for every container's usage each 10 s. A walk may use one part in so many of a core, however
# many files the container has written; within that time the last answer stands.
_REST_PER_WALK = 20


def disk_usage(directory: Path, is_wanted: Callable[[], bool] = lambda: True) -> Usage:
    """Allocated bytes and inodes below ``directory``, itself included; a file with several links counts once.

    Entries that vanish meanwhile do not count. Raise ``SnapshotCancelledError`` soon after ``is_wanted()``
    turns false.
    """
    size, count, linked = 0, 0, set[tuple[int, int]]()
    try:
        size, count = os.lstat(directory).st_blocks * _BLOCK_BYTES, 1
    except FileNotFoundError:
        return Usage()
    pending = [str(directory)]
    while pending:
        try:
            entries = os.scandir(pending.pop())
        except (FileNotFoundError, NotADirectoryError):
            continue
        with entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISDIR(status.st_mode):
                    pending.append(entry.path)
                elif status.st_nlink > 1:
                    if (inode := (status.st_dev, status.st_ino)) in linked:
                        continue
                    linked.add(inode)
                size, count = size + status.st_blocks * _BLOCK_BYTES, count + 1
                if count % _ENTRIES_BETWEEN_CHECKS == 0 and not is_wanted():
                    raise SnapshotCancelledError("usage is no longer wanted")
    return Usage(size, count)


class UsageOfActive:
    """The usage of active snapshots, walked only as often as the walk is cheap."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last: dict[int, tuple[float, Usage]] = {}  # id -> valid until, usage

    def of(self, snapshot_id: int, directory: Path, is_wanted: Callable[[], bool] = lambda: True) -> Usage:
        started = self._clock()
        valid_until, usage = self._last.get(snapshot_id, (started, Usage()))
        if started < valid_until:
            return usage
        usage = disk_usage(directory, is_wanted)
        ended = self._clock()
        self._last[snapshot_id] = (ended + (ended - started) * _REST_PER_WALK, usage)
        return usage

    def forget(self, snapshot_id: int) -> None:
        self._last.pop(snapshot_id, None)
