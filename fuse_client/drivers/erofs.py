"""The default driver: the kernel's EROFS over a bootstrap file and a device that we serve.

The kernel answers every lookup, stat and listing from the bootstrap, which is a local file; only file content
goes through FUSE to the session.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from pathlib import Path

from fastpull.fuse_client.drivers import mounting
from fastpull.fuse_client.drivers.errors import DriverError, MountError
from fastpull.fuse_client.drivers.mounts import MountPoint, UnmountFlag, mounts_at, mounts_below
from fastpull.fuse_client.drivers.probe import KernelFeatures

log = logging.getLogger(__name__)

_READAHEAD_KIB = 4096
_BDI = Path("/sys/class/bdi")


class ErofsDriver:
    """Mounts chains the way this kernel does it best. Stateless: what is mounted, the kernel knows."""

    def __init__(self, features: KernelFeatures) -> None:
        """Raise ``DriverError`` where the kernel can do it in no way."""
        if not features.erofs_usable:
            raise DriverError(f"EROFS can not be used: {features.erofs_problem}", remedy='set driver = "fuse"')
        self._file_backed = features.erofs_file_backed
        self._options = "directio" if features.erofs_directio else ""

    async def mount(self, bootstrap: Path, device: Path, target: Path) -> None:
        """Mount the tree of ``bootstrap``, whose file content lies in ``device``, on the directory ``target``.

        The session must serve ``device``, and the event loop must run meanwhile. Read-only, with setuid files
        and device nodes, as a container's root file system needs. Raise ``MountError``; nothing is mounted then.
        """
        if self._file_backed:
            await mounting.mount_erofs_file(bootstrap, device, target, self._options)
        else:
            await mounting.mount_erofs_loop(bootstrap, device, target)
        _set_readahead(target)

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
        return [mount for mount in mounts_below(root) if mount.fstype == "erofs"]


def _set_readahead(target: Path) -> None:
    """The kernel's 128 KiB would make requests of 128 KiB; a fetch or a copy of 1 MiB costs hardly more."""
    mounted = mounts_at(target)
    if not mounted:
        return
    with contextlib.suppress(OSError):
        (_BDI / mounted[-1].device / "read_ahead_kb").write_text(str(_READAHEAD_KIB))
