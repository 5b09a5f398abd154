"""Who keeps the FUSE descriptor while daemons come and go: our own holder, or systemd."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from fastpull.fuse_client.session.holder_keeper import HolderKeeper
from fastpull.fuse_client.session.systemd_keeper import SystemdKeeper


class FdKeeper(Protocol):
    """Keeps copies of descriptors, by name, beyond the death of this process. Calls block for microseconds.

    Every method raises ``KeeperError``, nothing else.
    """

    @property
    def description(self) -> str:
        """Who it is, for people."""
        ...

    def take(self, name: str) -> int | None:
        """A copy of the descriptor, the caller's to close; None = there is none whose other side lives."""
        ...

    def put(self, name: str, fd: int) -> None:
        """Keep a copy of ``fd``, replacing what had the name."""
        ...

    def drop(self, name: str) -> None:
        """Close the copy; none there is fine."""
        ...

    async def lost(self) -> None:
        """Return when the keeper and all it kept is gone. May wait for ever."""
        ...

    def close(self) -> None:
        """Leave the keeper, which goes on keeping."""
        ...


def find_keeper(run_dir: Path, environ: Mapping[str, str]) -> FdKeeper:
    """systemd where it offers its store, else our holder, started if none runs. Raise ``KeeperError``.

    A running holder goes first: it may keep the mount of a daemon that was started by hand.
    """
    running = HolderKeeper.connect(run_dir)
    if running is not None:
        return running
    return SystemdKeeper.from_environment(environ, pid=os.getpid()) or HolderKeeper.connect_or_start(run_dir)
