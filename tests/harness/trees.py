"""One image as two directories: unpacked by containerd for overlayfs, and mounted by us."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tools.compare_trees import Difference

from harness.stack import Stack
from harness.starts import NAMESPACE, pull, remove


@contextlib.contextmanager
def both_trees(stack: Stack, image: str, directory: Path) -> Iterator[tuple[Path, Path]]:
    """Under one containerd; unmounted and removed at the end."""
    paths = []
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(remove, stack.containerd, image)
        for snapshotter in ("overlayfs", "fastpull"):
            pull(stack.containerd, image, snapshotter)
            target = directory / snapshotter
            target.mkdir(parents=True)
            stack.containerd.ctr(*("images", "mount", "--snapshotter", snapshotter, image, target), namespace=NAMESPACE)
            cleanup.callback(stack.containerd.ctr, "images", "unmount", "--rm", target, namespace=NAMESPACE)
            paths.append(target)
        yield paths[0], paths[1]


def unexpected(differences: list[Difference], implied: set[str]) -> list[str]:
    """A directory without an entry in any layer has the time of unpacking, under containerd."""
    return [str(d) for d in differences if not (d.field == "mtime_ns" and d.path in {"", *implied})]
