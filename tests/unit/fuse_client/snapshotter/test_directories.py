"""The files of unpacked and writable snapshots."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastpull.fuse_client.snapshotter.directories import SnapshotDirectories
from fastpull.fuse_client.snapshotter.mountinfo import MountedFs

is_root = os.geteuid() == 0


@pytest.fixture
def directories(tmp_path: Path) -> SnapshotDirectories:
    return SnapshotDirectories(tmp_path, mounts=list)


def test_the_root_directory_of_a_container_has_mode_and_owner_of_the_layer_below(
    directories: SnapshotDirectories, tmp_path: Path
) -> None:
    below = tmp_path / "below"
    below.mkdir()
    if is_root:
        os.chown(below, 1234, 5678)
    before = os.umask(0o077)
    try:
        directories.ensure(7, like=below, writable=True)
    finally:
        os.umask(before)

    upper = directories.upper(7).stat()
    assert upper.st_mode & 0o7777 == 0o755
    assert (upper.st_uid, upper.st_gid) == (below.stat().st_uid, below.stat().st_gid)
    assert directories.work(7).is_dir()
    assert directories.ids() == [7]


def test_ensuring_again_touches_nothing(directories: SnapshotDirectories) -> None:
    directories.ensure(1, like=None, writable=True)
    (directories.upper(1) / "file").write_text("kept")
    directories.upper(1).chmod(0o700)

    directories.ensure(1, like=None, writable=True)

    assert (directories.upper(1) / "file").read_text() == "kept"
    assert directories.upper(1).stat().st_mode & 0o777 == 0o700


def test_a_half_made_directory_is_finished(directories: SnapshotDirectories, tmp_path: Path) -> None:
    (tmp_path / "snapshots" / "1").mkdir()
    (tmp_path / "snapshots" / "1" / "fs.new").mkdir(mode=0o700)

    directories.ensure(1, like=None, writable=True)

    assert directories.upper(1).stat().st_mode & 0o777 == 0o755
    assert sorted(path.name for path in (tmp_path / "snapshots" / "1").iterdir()) == ["fs", "work"]


def test_discarding_removes_trees_of_any_depth(directories: SnapshotDirectories, tmp_path: Path) -> None:
    """Deeper than recursion and longer than PATH_MAX: a container may build such a tree."""
    directories.ensure(1, like=None, writable=True)
    here = os.open(directories.upper(1), os.O_DIRECTORY)
    for _ in range(1500):
        os.mkdir("a-rather-long-name", dir_fd=here)
        below = os.open("a-rather-long-name", os.O_DIRECTORY, dir_fd=here)
        os.close(here)
        here = below
    os.symlink("/", "link", dir_fd=here)
    os.close(here)

    assert directories.discard(1)
    directories.empty_trash()

    assert list((tmp_path / "snapshots" / "removing").iterdir()) == []
    assert directories.ids() == []


@pytest.mark.fault(
    "snapshotter: a directory to be removed is in use",
    done="an overlay of a container names it",
    promised="nothing of it is removed",
)
def test_what_is_in_use_is_kept(tmp_path: Path) -> None:
    directories = SnapshotDirectories(tmp_path, mounts=lambda: [user])
    user = MountedFs("0:1", "/", "/run/rootfs", "overlay", (str(directories.upper(1)),))
    directories.ensure(1, like=None, writable=True)

    assert not directories.discard(1)
    assert directories.upper(1).is_dir()


def test_trash_of_an_earlier_life_is_removed(directories: SnapshotDirectories, tmp_path: Path) -> None:
    directories.ensure(1, like=None, writable=True)
    directories.discard(1)

    SnapshotDirectories(tmp_path, mounts=list).empty_trash()

    assert list((tmp_path / "snapshots" / "removing").iterdir()) == []


def test_a_root_that_overlay_options_can_not_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="overlay"):
        SnapshotDirectories(tmp_path / "a:b")
