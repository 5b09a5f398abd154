"""The tree comparison sees every kind of difference."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tools.compare_trees import compare


def tree(root: Path) -> Path:
    (root / "dir/sub").mkdir(parents=True)
    (root / "dir/file").write_bytes(b"content")
    os.link(root / "dir/file", root / "dir/hard")
    (root / "dir/other").write_bytes(b"other")
    (root / "link").symlink_to("dir/file")
    for path in [*root.rglob("*"), root]:
        os.utime(path, ns=(1, 1_700_000_000_123_456_789), follow_symlinks=False)
    return root


def rewrite(path: Path, data: bytes) -> None:
    info = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(1, info.st_mtime_ns))


def unlink_again(root: Path) -> None:
    parent = (root / "dir").stat()
    (root / "dir/hard").unlink()
    shutil.copy2(root / "dir/file", root / "dir/hard")
    os.utime(root / "dir", ns=(1, parent.st_mtime_ns))


CHANGES: dict[str, tuple[Callable[[Path], object], set[str]]] = {
    "mode": (lambda r: (r / "dir/other").chmod(0o4755), {"mode"}),
    "mtime": (lambda r: os.utime(r / "dir/other", ns=(1, 1_700_000_000_123_456_788)), {"mtime_ns"}),
    "content": (lambda r: rewrite(r / "dir/other", b"OTHER"), {"content"}),
    "size": (lambda r: rewrite(r / "dir/other", b"longer content"), {"content", "size"}),
    "xattr": (lambda r: os.setxattr(r / "dir/other", "user.x", b"1"), {"xattrs"}),
    "hardlink": (unlink_again, {"nlink", "same inode as"}),
    "type": (lambda r: ((r / "dir/sub").rmdir(), (r / "dir/sub").touch()), {"type"}),
    "missing": (lambda r: (r / "link").unlink(), {"exists"}),
    "extra": (lambda r: (r / "extra").touch(), {"exists"}),
}


def test_equal_trees_have_no_difference(tmp_path: Path) -> None:
    """Copies of one tree are equal, hard links included."""
    entries, differences = compare(tree(tmp_path / "a"), tree(tmp_path / "b"))

    assert differences == []
    assert entries == 7


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_found(tmp_path: Path, name: str) -> None:
    """Each kind of change shows under its own name."""
    left, right = tree(tmp_path / "a"), tree(tmp_path / "b")
    change, fields = CHANGES[name]
    change(right)

    _, differences = compare(left, right)

    assert fields <= {d.field for d in differences}
