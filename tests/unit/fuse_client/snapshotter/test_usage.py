"""What a snapshot takes on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastpull.fuse_client.snapshotter.errors import SnapshotCancelledError
from fastpull.fuse_client.snapshotter.records import Usage
from fastpull.fuse_client.snapshotter.usage import UsageOfActive, disk_usage


def test_allocated_bytes_and_inodes_are_counted_once(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "file").write_bytes(b"x" * 100_000)
    os.link(tree / "file", tree / "deep" / "same")
    with (tree / "sparse").open("wb") as sparse:
        sparse.truncate(10**9)
    (tree / "link").symlink_to("/")

    usage = disk_usage(tree)

    assert usage.inodes == 5  # tree, deep, file, sparse, link
    assert 100_000 <= usage.size < 1_000_000


def test_nothing_there_takes_nothing(tmp_path: Path) -> None:
    assert disk_usage(tmp_path / "missing") == Usage()


def test_a_walk_that_nobody_waits_for_ends(tmp_path: Path) -> None:
    for number in range(1000):
        (tmp_path / str(number)).touch()

    with pytest.raises(SnapshotCancelledError):
        disk_usage(tmp_path, lambda: False)


def test_walks_take_a_twentieth_of_the_time_at_most(tmp_path: Path) -> None:
    """A walk of two seconds is good for the next forty."""
    now = iter([0.0, 2.0, 41.0, 43.0, 44.0])
    usage = UsageOfActive(clock=lambda: next(now))
    first = usage.of(1, tmp_path)
    (tmp_path / "new").touch()

    assert usage.of(1, tmp_path) == first
    assert usage.of(1, tmp_path).inodes == first.inodes + 1
