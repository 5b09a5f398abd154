"""The part of containerd's ``core/snapshots/testsuite`` that mounts what it gets, on real overlays."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.chains import FakeChains
from harness.processes import run
from harness.snapshots import ServedSnapshotter, SnapshotsClient

pytestmark = pytest.mark.root


class Layers:
    """Prepares, mounts, changes, commits: what the differ does with a layer."""

    def __init__(self, client: SnapshotsClient, lab: Path) -> None:
        self.client = client
        self._lab = lab
        self._numbers = itertools.count(1)

    @contextlib.contextmanager
    def mounted(self, mounts: list[Any]) -> Iterator[Path]:
        assert len(mounts) == 1
        [mount] = mounts
        target = self._lab / f"mnt-{next(self._numbers)}"
        target.mkdir()
        options = [option for option in mount.options if option not in ("rw", "ro", "bind", "rbind")]
        if mount.type == "bind":
            run("mount", "--rbind", mount.source, target)
            if "ro" in mount.options:
                run("mount", "-o", "remount,bind,ro", target)
        else:
            run("mount", "-t", mount.type, "-o", ",".join(options), mount.source, target)
        try:
            yield target
        finally:
            run("umount", target)
            target.rmdir()

    def commit(self, parent: str, change: Callable[[Path], object]) -> str:
        number = next(self._numbers)
        with self.mounted(self.client.prepare(f"active-{number}", parent)) as root:
            change(root)
        self.client.commit(f"committed-{number}", f"active-{number}")
        return f"committed-{number}"

    @contextlib.contextmanager
    def view(self, parent: str) -> Iterator[Path]:
        with self.mounted(self.client.view(f"view-{next(self._numbers)}", parent)) as root:
            yield root


@pytest.fixture
def layers(lab: Path) -> Iterator[Layers]:
    (lab / "chains").mkdir()
    with ServedSnapshotter(lab / "node", FakeChains(lab / "chains")) as served, served.client() as client:
        yield Layers(client, lab)


def tree_of(root: Path) -> dict[str, str]:
    """Paths, with what is in the files."""
    return {
        str(path.relative_to(root)): path.read_text() if path.is_file() else "directory" for path in root.rglob("*")
    }


def make(files: dict[str, str]) -> Callable[[Path], None]:
    def change(root: Path) -> None:
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)

    return change


def test_a_layer_changes_what_the_lower_ones_have(layers: Layers) -> None:
    """A file changed, one removed, a directory removed and made again, one renamed: seen by the layers above."""

    def change(root: Path) -> None:
        (root / "etc/changed").write_text("new")
        (root / "etc/removed").unlink()
        shutil.rmtree(root / "opt")
        (root / "opt").mkdir()
        (root / "opt/fresh").write_text("f")
        shutil.move(root / "var/old", root / "var/new")

    lower = layers.commit(
        "", make({"etc/changed": "old", "etc/removed": "x", "opt/hidden/deep": "y", "var/old/file": "z", "kept": "k"})
    )
    upper = layers.commit(lower, change)
    top = layers.commit(upper, make({"top": "t"}))

    with layers.view(top) as root:
        assert tree_of(root) == {
            "etc": "directory",
            "etc/changed": "new",
            "opt": "directory",
            "opt/fresh": "f",
            "var": "directory",
            "var/new": "directory",
            "var/new/file": "z",
            "kept": "k",
            "top": "t",
        }
    with layers.view(lower) as root:
        assert (root / "etc/changed").read_text() == "old"


def test_owner_and_mode_of_the_root_go_from_layer_to_layer(layers: Layers) -> None:
    """In a user namespace its root must own "/": the owner of the parent's root is that of the child's."""

    def change(root: Path) -> None:
        os.chown(root, 5000, 6000)
        (root / "file").write_text("f")
        os.chown(root / "file", 1, 2)

    lower = layers.commit("", change)
    with layers.mounted(layers.client.prepare("child", lower)) as root:
        assert (root.stat().st_uid, root.stat().st_gid) == (5000, 6000)
        assert root.stat().st_mode & 0o7777 == 0o755
        assert ((root / "file").stat().st_uid, (root / "file").stat().st_gid) == (1, 2)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_view_can_not_be_written(layers: Layers, count: int) -> None:
    parent = ""
    for number in range(count):
        parent = layers.commit(parent, make({f"file-{number}": "x"}))

    with layers.view(parent) as root:
        with pytest.raises(OSError, match="Read-only"):
            (root / "new").write_text("no")
        assert len(tree_of(root)) == count


def test_two_containers_write_on_one_layer_without_seeing_each_other(layers: Layers) -> None:
    lower = layers.commit("", make({"file": "lower"}))
    first, second = layers.client.prepare("first", lower), layers.client.prepare("second", lower)

    with layers.mounted(first) as one, layers.mounted(second) as two:
        (one / "file").write_text("first")
        assert (two / "file").read_text() == "lower"
        (two / "own").write_text("second")
        assert not (one / "own").exists()
    with layers.mounted(layers.client.mounts("first")) as one:
        assert (one / "file").read_text() == "first"


def test_100_layers_mount(layers: Layers) -> None:
    """containerd shortens the list of lowers itself, by a change of directory; here they are short enough."""
    parent = ""
    for number in range(100):
        key = f"extract-{number}"
        [mount] = layers.client.prepare(key, parent)
        upper = next((o[9:] for o in mount.options if o.startswith("upperdir=")), mount.source)
        (Path(upper) / f"file-{number}").write_text(str(number))
        layers.client.commit(f"layer-{number}", key)
        parent = f"layer-{number}"

    [mount] = layers.client.view("all", parent)
    lowers = mount.options[-1].removeprefix("lowerdir=").split(":")
    assert len(lowers) == 100
    base = Path(lowers[0]).parent.parent
    mount.options[-1] = "lowerdir=" + ":".join(str(Path(lower).relative_to(base)) for lower in lowers)
    here = Path.cwd()
    os.chdir(base)
    try:
        with layers.mounted([mount]) as root:
            assert len(tree_of(root)) == 100
    finally:
        os.chdir(here)


def test_nothing_is_removed_through_a_mount(layers: Layers, lab: Path) -> None:
    """Something is still mounted inside a removed snapshot: its files stay until it is gone."""
    precious = lab / "precious"
    precious.mkdir()
    (precious / "data").write_text("do not delete")
    [mount] = layers.client.prepare("k")
    inside = Path(mount.source) / "inside"
    inside.mkdir()
    run("mount", "--bind", precious, inside)

    layers.client.remove("k")
    layers.client.cleanup()
    assert (inside / "data").read_text() == "do not delete"

    run("umount", inside)
    layers.client.cleanup()
    assert not Path(mount.source).exists()
    assert (precious / "data").read_text() == "do not delete"


def test_a_mount_that_appears_in_the_trash_stops_the_removal(layers: Layers, lab: Path) -> None:
    """Also when nobody knew of it: the kernel moves no mount point, and we remove only what was moved."""
    from fastpull.fuse_client.snapshotter.directories import SnapshotDirectories

    precious = lab / "precious"
    precious.mkdir()
    (precious / "data").write_text("do not delete")
    directories = SnapshotDirectories(lab / "other", mounts=list)  # sees no mounts
    directories.ensure(1, like=None, writable=False)
    inside = directories.upper(1) / "inside"
    inside.mkdir()
    run("mount", "--bind", precious, inside)

    assert directories.discard(1)
    directories.empty_trash()

    assert (precious / "data").read_text() == "do not delete"


def test_an_overlay_that_is_still_mounted_keeps_its_files(layers: Layers) -> None:
    lower = layers.commit("", make({"file": "x"}))
    mounts = layers.client.prepare("k", lower)
    with layers.mounted(mounts) as root:
        layers.client.remove("k")
        layers.client.remove(lower)
        layers.client.cleanup()
        (root / "written").write_text("still works")
        assert (root / "file").read_text() == "x"
    layers.client.cleanup()
    upper = next(o[9:] for o in mounts[0].options if o.startswith("upperdir="))
    assert not Path(upper).exists()
