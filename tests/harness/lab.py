"""What tests of real mounts need of the machine: short paths, and a page cache without anything in it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.mounts import unmount_all_below


@contextmanager
def short_directory() -> Iterator[Path]:
    """With a path that leaves room for unix sockets (they end after 107 bytes). At the end nothing is mounted in it."""
    path = Path(tempfile.mkdtemp(prefix="fp-", dir="/tmp"))
    try:
        yield path
    finally:
        unmount_all_below(path)
        shutil.rmtree(path)


def drop_page_cache() -> None:
    """As after a boot: nothing of any file is in memory."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
