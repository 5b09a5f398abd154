"""Compare two directory trees, entry by entry: everything that a container could notice.

    python tests/tools/compare_trees.py LEFT RIGHT [--no-content] [--json]

Path, type, mode, owner, size, mtime in ns, device number, link target, link count, which names are one
inode, extended attributes, and the content's sha256. Exit code 0: no difference, 1: differences, 2: usage.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import stat
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

# Kept by overlayfs itself in the layers' directories; no container sees them.
_OVERLAY_XATTRS = ("trusted.overlay.", "user.overlay.")
_PIECE = 1 << 20


@dataclass(frozen=True)
class Difference:
    path: str
    field: str
    left: object
    right: object

    def __str__(self) -> str:
        return f"{self.path or '/'}: {self.field}: {self.left!r} != {self.right!r}"


@dataclass(frozen=True)
class Side:
    """One tree: its root, and for each inode with several names the first name by path order."""

    root: bytes
    first_name: dict[tuple[int, int], bytes]

    def describe(self, path: bytes, info: os.stat_result) -> dict[str, object]:
        full = os.path.join(self.root, path) if path else self.root
        kind = stat.S_IFMT(info.st_mode)
        facts: dict[str, object] = {
            "type": oct(kind),
            "mode": oct(stat.S_IMODE(info.st_mode)),
            "uid": info.st_uid,
            "gid": info.st_gid,
            "mtime_ns": info.st_mtime_ns,
            "xattrs": _xattrs(full),
            "nlink": info.st_nlink,
        }
        if kind == stat.S_IFREG:
            facts["size"] = info.st_size
        if kind in (stat.S_IFCHR, stat.S_IFBLK):
            facts["rdev"] = info.st_rdev
        if kind == stat.S_IFLNK:
            facts["target"] = os.readlink(full)
        if kind != stat.S_IFDIR and info.st_nlink > 1:
            facts["same inode as"] = self.first_name.setdefault((info.st_dev, info.st_ino), path)
        return facts


def compare(left: Path, right: Path, *, content: bool = True, limit: int = 1000) -> tuple[int, list[Difference]]:
    """Return the number of entries of ``left`` and the differences, at most ``limit``."""
    sides = (Side(os.fsencode(left), {}), Side(os.fsencode(right), {}))
    differences: list[Difference] = []
    entries = 0
    with ThreadPoolExecutor(4) as pool:
        pending = []
        for path, infos in _paired(sides[0].root, sides[1].root):
            name = os.fsdecode(path)
            entries += infos[0] is not None
            if infos[0] is None and infos[1] is None:
                continue  # overlayfs lists a whiteout in a directory that it does not merge; nobody can look it up
            if infos[0] is None or infos[1] is None:
                differences.append(Difference(name, "exists", infos[0] is not None, infos[1] is not None))
            else:
                differences += _facts(name, sides[0].describe(path, infos[0]), sides[1].describe(path, infos[1]))
                if content and stat.S_ISREG(infos[0].st_mode) and stat.S_ISREG(infos[1].st_mode) and infos[0].st_size:
                    pending.append((name, [pool.submit(_digest, os.path.join(s.root, path)) for s in sides]))
            if len(differences) >= limit:
                break
            if len(pending) > 256:
                differences += _digests(pending)
                pending.clear()
        differences += _digests(pending)
    return entries, differences[:limit]


def _facts(name: str, left: dict[str, object], right: dict[str, object]) -> Iterator[Difference]:
    for key in sorted(left.keys() | right.keys()):
        a, b = left.get(key), right.get(key)
        # A merged directory of overlayfs always says 1: "not counted" (fs/overlayfs/inode.c, ovl_getattr).
        uncounted = key == "nlink" and left["type"] == right["type"] == oct(stat.S_IFDIR) and 1 in (a, b)
        if a != b and not uncounted:
            yield Difference(name, key, a, b)


def _digests(pending: list) -> Iterator[Difference]:
    for name, futures in pending:
        a, b = (future.result() for future in futures)
        if a != b:
            yield Difference(name, "content", a, b)


def _paired(left: bytes, right: bytes) -> Iterator[tuple[bytes, list[os.stat_result | None]]]:
    """Walk both trees in one sorted order; ``None`` stands for an entry that one side lacks."""
    stack: list[bytes] = [b""]
    while stack:
        path = stack.pop()
        infos = [_lstat(os.path.join(root, path) if path else root) for root in (left, right)]
        yield path, infos
        if all(info is not None and stat.S_ISDIR(info.st_mode) for info in infos):
            names = sorted(
                [
                    (name, side)
                    for side, root in enumerate((left, right))
                    for name in os.listdir(os.path.join(root, path))
                ]
            )
            merged = [name for name, _ in groupby(names, key=lambda item: item[0])]
            stack.extend(os.path.join(path, name) if path else name for name in reversed(merged))


def _lstat(path: bytes) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def _xattrs(path: bytes) -> dict[str, bytes]:
    names = os.listxattr(path, follow_symlinks=False)
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in sorted(names)
        if not name.startswith(_OVERLAY_XATTRS)
    }


def _digest(path: bytes) -> str:
    """A read error is a value like any other, so that it shows as a difference."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    except OSError as exc:
        return f"unreadable: {exc.strerror}"
    return digest.hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("left", type=Path)
    parser.add_argument("right", type=Path)
    parser.add_argument("--no-content", action="store_true", help="metadata only")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    entries, differences = compare(args.left, args.right, content=not args.no_content)
    if args.json:
        rows = [{"path": d.path, "field": d.field, "left": str(d.left), "right": str(d.right)} for d in differences]
        print(json.dumps({"entries": entries, "differences": rows}))
    else:
        for difference in differences:
            print(difference)
        print(f"{entries} entries, {len(differences)} differences", file=sys.stderr)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
