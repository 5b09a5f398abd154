"""Disks that are too small or fail, and directories that end up on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.failing_disk import FailingDisk
from harness.lab import short_directory


@pytest.fixture
def root() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.fixture
def disk(root: Path) -> Iterator[FailingDisk]:
    with FailingDisk(root / "failing") as disk:
        yield disk
