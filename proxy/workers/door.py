"""The leader's socket for its followers.

``<data_dir>/workers/leader.sock``, mode 0600 in a directory of mode 0700: who may connect is who may read the stores
anyway. It serves the same application as the port; who comes through it is a client whom a follower has let in.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAME = "leader.sock"


def directory(data_dir: Path) -> Path:
    return data_dir / "workers"


@contextmanager
def short_path(folder: Path) -> Iterator[str]:
    """The socket's path by way of a descriptor of its folder: a unix socket's own takes 107 bytes (unix(7))."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{NAME}"
    finally:
        os.close(descriptor)


def prepare(data_dir: Path) -> Path:
    """The private folder, without what an earlier leader left. Raise ``OSError``."""
    folder = directory(data_dir)
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.chmod(0o700)
    (folder / NAME).unlink(missing_ok=True)
    return folder
