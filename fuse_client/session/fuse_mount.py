"""A new FUSE mount, up to the kernel's INIT."""

from __future__ import annotations

import os
import select
from pathlib import Path

from fastpull.fuse_client.drivers.mounts import MountFlag, mount
from fastpull.fuse_client.session.errors import SessionError
from fastpull.fuse_client.session.protocol import MAX_READ, MIN_BUFFER, Init, parse

_FUSE = "/dev/fuse"
_INIT_SECONDS = 15.0


def mount_fuse(path: Path) -> int:
    """Mount on the directory ``path`` and return the connection's descriptor.

    Does not wait for INIT; whoever touches the mount does. Raise ``SessionError`` or ``MountError``.
    """
    try:
        fd = os.open(_FUSE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        raise SessionError(
            f"{_FUSE}: {exc.strerror}", remedy="load the module fuse; in a container, pass the device in"
        ) from exc
    try:
        # No allow_other: EROFS opens a device with the mounter's credentials, nobody else needs to.
        options = f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}"
        options += f",default_permissions,max_read={MAX_READ}"
        flags = MountFlag.READ_ONLY | MountFlag.NO_SUID | MountFlag.NO_DEV | MountFlag.NO_EXEC | MountFlag.NO_ATIME
        mount("fastpull", path, "fuse.fastpull", flags, options)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_init(fd: int) -> Init:
    """The first request on a new mount. Raise ``SessionError``."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(_INIT_SECONDS * 1000):
        raise SessionError(f"the kernel sent no INIT within {_INIT_SECONDS:.0f} s")
    request = parse(memoryview(os.read(fd, MIN_BUFFER)))
    if not isinstance(request, Init):
        raise SessionError(f"the kernel began with {type(request).__name__} instead of INIT")
    return request
