"""The directories of unpacked and writable snapshots: ``<root>/snapshots/<id>/{fs,work}``.

A directory without a record is garbage, whatever left it behind; a record never lacks its directory for
longer than until its next use. So no step needs to be undone after a crash.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from fastpull.fuse_client.snapshotter.mountinfo import MountedFs, mounted_below, read_mountinfo, uses_of

log = logging.getLogger(__name__)


class SnapshotDirectories:
    def __init__(self, root: Path, *, mounts: Callable[[], list[MountedFs]] = read_mountinfo) -> None:
        if any(mark in str(root) for mark in ":,\\"):
            raise ValueError(f"root = {root}: overlay options can not hold a path with ':', ',' or a backslash")
        self._parent = root / "snapshots"
        self._trash = self._parent / "removing"
        self._run = secrets.token_hex(4)  # names in the trash are unique across restarts
        self._moved = 0
        self._mounts = mounts
        self._parent.mkdir(mode=0o700, parents=True, exist_ok=True)

    def upper(self, snapshot_id: int) -> Path:
        return self._parent / str(snapshot_id) / "fs"

    def work(self, snapshot_id: int) -> Path:
        return self._parent / str(snapshot_id) / "work"

    def ids(self) -> list[int]:
        """The snapshots that have a directory, also those without a record."""
        return sorted(int(entry.name) for entry in self._parent.iterdir() if entry.name.isdecimal())

    def ensure(self, snapshot_id: int, *, like: Path | None, writable: bool) -> None:
        """Make the directories, where they are missing.

        ``fs`` becomes the root directory of a container, with the owner of ``like``, the root of the layer
        below: in a user namespace that is the one that may enter it.
        """
        upper, work = self.upper(snapshot_id), self.work(snapshot_id)
        if upper.is_dir() and (work.is_dir() or not writable):
            return
        upper.parent.mkdir(mode=0o700, exist_ok=True)
        if writable:
            work.mkdir(mode=0o711, exist_ok=True)
        made = upper.with_name("fs.new")  # named "fs" only when mode and owner are right
        made.mkdir(exist_ok=True)
        made.chmod(0o755)  # whatever the umask
        if like is not None:
            owner = like.lstat()
            os.chown(made, owner.st_uid, owner.st_gid, follow_symlinks=False)
        made.rename(upper)

    def discard(self, snapshot_id: int) -> bool:
        """Take a snapshot's files out of sight; False when something is mounted there or stands on them.

        ``empty_trash`` then removes them.
        """
        directory = self._parent / str(snapshot_id)
        mounts = self._mounts()
        if holders := mounted_below(mounts, directory) + uses_of(mounts, directory):
            log.warning("snapshot directory %s is kept: in use by %s", directory, ", ".join(holders[:3]))
            return False
        if directory.is_dir():
            self._trash.mkdir(mode=0o700, exist_ok=True)
            directory.rename(self._fresh_name())
        return True

    def empty_trash(self) -> None:
        """Remove what was discarded. What resists is logged and tried again next time.

        Never through a mount: before anything in a directory is touched, the directory is moved, and
        the kernel moves no mount point. That also keeps paths short and this loop flat, however deep
        the tree that a container has built.
        """
        if not self._trash.is_dir():
            return
        pending = list(self._trash.iterdir())
        while pending:
            directory = pending.pop()
            try:
                with os.scandir(directory) as entries:
                    for entry in list(entries):
                        if entry.is_dir(follow_symlinks=False):
                            moved = self._fresh_name()
                            Path(entry.path).rename(moved)
                            pending.append(moved)
                        else:
                            Path(entry.path).unlink()
                directory.rmdir()
            except OSError as exc:
                log.warning("%s can not be removed yet: %s", directory, exc)

    def _fresh_name(self) -> Path:
        self._moved += 1
        return self._trash / f"{self._run}-{self._moved}"
