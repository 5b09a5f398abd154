"""The default driver: the kernel's EROFS over a bootstrap file and a device that we serve.

The kernel answers every lookup, stat and listing from the bootstrap, which is a local file; only file content
goes through FUSE to the session.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from pathlib import Path

from fastpull.fuse_client.drivers import mounting
from fastpull.fuse_client.drivers.errors import DriverError, MountError
from fastpull.fuse_client.drivers.mounts import MountPoint, UnmountFlag, mounts_at, mounts_below
from fastpull.fuse_client.drivers.probe import KernelFeatures

log = logging.getLogger(__name__)


# What the kernel reads ahead, and around a page fault. Sequential reads with everything local: 2.6 GB/s with the
# kernel's 128, 3.8 with 512, 4.1 with 4096; but a page fault that is not local would have to fetch as much.
_READAHEAD_KIB = 512
_BDI = Path("/sys/class/bdi")


class ErofsDriver:
    """Mounts chains the way this kernel does it best. Stateless: what is mounted, the kernel knows."""

    def __init__(self, features: KernelFeatures) -> None:
        """Raise ``DriverError`` where the kernel can do it in no way."""
        if not features.erofs_usable:
            raise DriverError(f"EROFS can not be used: {features.erofs_problem}", remedy='set driver = "fuse"')
        self._file_backed = features.erofs_file_backed
        self._options = "directio" if features.erofs_directio else ""
        self._one_at_a_time = asyncio.Lock()  # see _set_readahead

    async def mount(self, bootstrap: Path, device: Path, target: Path) -> None:
        """Mount the tree of ``bootstrap``, whose file content lies in ``device``, on the directory ``target``.

        The session must serve ``device``, and the event loop must run meanwhile. Read-only, with setuid files
        and device nodes, as a container's root file system needs. Raise ``MountError``; nothing is mounted then.
        """
        async with self._one_at_a_time:
            before = _backing_devices()
            if self._file_backed:
                await mounting.mount_erofs_file(bootstrap, device, target, self._options)
            else:
                await mounting.mount_erofs_loop(bootstrap, device, target)
            _set_readahead(_backing_devices() - before, target)

    async def unmount(self, target: Path, *, lazy: bool = False) -> None:
        """Unmount all that lies on ``target``; nothing there is fine.

        ``lazy``: also while files are open; users go on until they close them. Else raise ``MountError`` with
        EBUSY.
        """
        for _ in mounts_at(target):
            try:
                await mounting.unmount(target, UnmountFlag.DETACH if lazy else UnmountFlag.NO_FOLLOW)
            except MountError as exc:
                if exc.code != errno.EINVAL or mounts_at(target):  # EINVAL: somebody else was faster
                    raise

    def mounted(self, root: Path) -> list[MountPoint]:
        """The EROFS mounts at ``root`` or below."""
        return erofs_mounts(root)


def erofs_mounts(root: Path) -> list[MountPoint]:
    """The EROFS mounts at ``root`` or below."""
    return [mount for mount in mounts_below(root) if mount.fstype == "erofs"]


def _backing_devices() -> set[str]:
    """The readahead settings of EROFS mounts from files."""
    return {path.name for path in _BDI.glob("erofs-*")}


def _set_readahead(new: set[str], target: Path) -> None:
    if not new and (mounted := mounts_at(target)):
        new = {mounted[-1].device}  # from loop devices: the one that holds the bootstrap
    for name in new:  # nothing tells which is whose, and one that somebody else mounted at the same moment is not hurt
        with contextlib.suppress(OSError):
            (_BDI / name / "read_ahead_kb").write_text(str(_READAHEAD_KIB))
