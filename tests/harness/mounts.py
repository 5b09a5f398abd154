"""What is mounted beneath a directory, and its end."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2


def mount_points_below(directory: Path) -> list[Path]:
    """Deepest and latest first: the order in which to unmount."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        point = Path(line.split(" ")[4].replace("\\040", " "))
        if point == directory or directory in point.parents:
            found.append(point)
    return found[::-1]


def unmount_all_below(directory: Path) -> list[Path]:
    """Unmount everything; detach what is busy. Return what was mounted."""
    points = mount_points_below(directory)
    for point in points:
        if _umount(point, 0) != 0 and _umount(point, _MNT_DETACH) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), str(point))
    return points


def _umount(point: Path, flags: int) -> int:
    return int(_libc.umount2(os.fsencode(point), flags))
