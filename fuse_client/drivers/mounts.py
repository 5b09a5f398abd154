"""mount(2), umount2(2) and what is mounted.

``mount`` and ``unmount`` block, in bad cases for ever: of what is served by this very process, call them only
in a process of their own (``mount_process.py`` says why).
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fastpull.fuse_client.drivers.errors import MountError

_MOUNTINFO = Path("/proc/self/mountinfo")
_OPTIONS_MAX = 4095  # the kernel takes one page, with its zero
_ESCAPE = re.compile(r"\\([0-7]{3})")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


class MountFlag(enum.IntFlag):
    """``MS_*`` of mount(2)."""

    READ_ONLY = 1
    NO_SUID = 2
    NO_DEV = 4
    NO_EXEC = 8
    NO_ATIME = 1024


class UnmountFlag(enum.IntFlag):
    """``MNT_*`` and ``UMOUNT_*`` of umount2(2)."""

    FORCE = 1  # FUSE: abort the connection first, so that nobody waits any more
    DETACH = 2  # gone from the tree at once, from the kernel when the last user leaves
    NO_FOLLOW = 8


def mount(source: Path | str, target: Path, fstype: str, flags: MountFlag, options: str = "") -> None:
    """mount(2). Raise ``MountError``."""
    data = os.fsencode(options)
    if len(data) > _OPTIONS_MAX:
        raise MountError(f"mount {fstype} on", target, errno.EINVAL, f"{len(data)} bytes of options")
    if _libc.mount(os.fsencode(source), os.fsencode(target), fstype.encode(), flags, data):
        raise MountError(f"mount {fstype} on", target, ctypes.get_errno())


def unmount(target: Path, flags: UnmountFlag = UnmountFlag.NO_FOLLOW) -> None:
    """umount2(2), never through a symbolic link. Raise ``MountError``."""
    if _libc.umount2(os.fsencode(target), flags | UnmountFlag.NO_FOLLOW):
        raise MountError("unmount", target, ctypes.get_errno())


class MountPoint(NamedTuple):
    """One line of ``/proc/self/mountinfo``."""

    id: int
    parent: int
    device: str  # "major:minor", what st_dev shows
    root: str
    path: Path
    options: str
    fstype: str
    source: str
    super_options: str


def parse_mountinfo(text: str) -> list[MountPoint]:
    """proc_pid_mountinfo(5): one mount a line, in the order in which they were mounted. Pure.

    Space, tab, newline and backslash are octal escapes. Lines that are none are left out.
    """
    return list(_parse(text))


def _parse(text: str) -> Iterator[MountPoint]:
    for line in text.splitlines():
        fields = line.split(" ")
        try:
            dash = fields.index("-", 6)  # behind zero or more optional fields
            fstype, source, super_options = fields[dash + 1 : dash + 4]
            yield MountPoint(
                id=int(fields[0]),
                parent=int(fields[1]),
                device=fields[2],
                root=_unescape(fields[3]),
                path=Path(_unescape(fields[4])),
                options=fields[5],
                fstype=_unescape(fstype),
                source=_unescape(source),
                super_options=super_options,
            )
        except ValueError:
            continue


def _unescape(text: str) -> str:
    # The kernel escapes bytes, so this can not split a character that is UTF-8.
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def mounts() -> list[MountPoint]:
    """Everything mounted in our mount namespace."""
    return parse_mountinfo(os.fsdecode(_MOUNTINFO.read_bytes()))


def mounts_at(target: Path) -> list[MountPoint]:
    """What is mounted exactly at ``target``, the topmost last. Follows no links and touches no mount."""
    return [mount for mount in mounts() if mount.path == target]


def mounts_below(root: Path) -> list[MountPoint]:
    """What is mounted at ``root`` or below it, in the order of mounting."""
    return [mount for mount in mounts() if mount.path.is_relative_to(root)]


def is_mounted(target: Path) -> bool:
    return bool(mounts_at(target))
