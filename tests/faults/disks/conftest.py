"""Disks that are too small or fail, and directories that end up on them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.failing_disk import FailingDisk
from harness.mounts import unmount_all_below


@pytest.fixture
def root() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="fpd-", dir="/tmp"))  # short: unix sockets end after 107 bytes
    yield path
    unmount_all_below(path)
    shutil.rmtree(path)


@pytest.fixture
def disk(root: Path) -> Iterator[FailingDisk]:
    with FailingDisk(root / "failing") as disk:
        yield disk
