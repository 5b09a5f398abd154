"""The portable driver: the whole tree through pyfuse3, by a process of its own for each mount.

Slower than EROFS, and a mount can not outlive its process; the process outlives the daemon.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fastpull.fuse_client.drivers import mounting
from fastpull.fuse_client.drivers.errors import MountError
from fastpull.fuse_client.drivers.mounts import MountPoint, UnmountFlag, mounts_at, mounts_below
from fastpull.fuse_client.portable.children import SUBTYPE, Children

log = logging.getLogger(__name__)

FSTYPE = f"fuse.{SUBTYPE}"
CHUNK_MAP = "chunks.map"  # beside the bootstrap

_END_SECONDS = 2.0  # for a child without users to end in
_WATCH_SECONDS = 1.0


class _Served(NamedTuple):
    token: str
    since: float  # monotonic; 0 = before this daemon


class PortableDriver:
    """Mounts chains by children. What is mounted and who serves it, kernel and disk know.

    ``on_lost`` is called with the directory of a mount whose child has died, and the seconds that it lived: nobody
    can use that mount any more.
    """

    def __init__(
        self, children: Children, root: Path, *, store: Path, socket: Path, wait_seconds: float, verify_always: bool
    ) -> None:
        self.deaths = 0
        self.on_lost: Callable[[Path, float], None] = lambda _target, _seconds: None
        self._children = children
        self._root = root
        self._store = store
        self._socket = socket
        self._wait_seconds = wait_seconds
        self._verify_always = verify_always
        self._look = asyncio.Event()
        living = set(children.living())
        self._serving = {mount.path: _Served(mount.source, 0.0) for mount in _trees(root) if mount.source in living}

    @property
    def serving(self) -> int:
        """Mounts with a living child."""
        return len(self._serving)

    async def mount(self, bootstrap: Path, device: Path, target: Path) -> None:
        """Mount the tree of ``bootstrap`` on the directory ``target``; ``device.name`` is the chain's hex chainID.

        The chunk map stands beside the bootstrap. Read-only, with setuid files and device nodes. What lies there of
        a child that has died is detached first. Raise ``DriverError``; nothing is mounted then.
        """
        await self._clear(target)
        arguments = ["--chain", device.name, "--bootstrap", bootstrap, "--chunk-map", bootstrap.parent / CHUNK_MAP]
        arguments += ["--target", target, "--store", self._store, "--socket", self._socket]
        arguments += ["--wait-seconds", self._wait_seconds, *(["--verify-always"] if self._verify_always else [])]
        try:
            token = await self._children.start([str(argument) for argument in arguments])
        except BaseException:
            await self._clear(target)
            raise
        self._serving[target] = _Served(token, time.monotonic())

    async def unmount(self, target: Path, *, lazy: bool = False) -> None:
        """Unmount all that lies on ``target``; nothing there is fine.

        ``lazy``: also while files are open; users go on until they close them. Else raise ``MountError`` with EBUSY.
        Who uses the tree in other ways (a bind mount, an overlay) goes on too, and the child with it: it ends, soon,
        with its last user.
        """
        served = self._serving.pop(target, None)  # what follows is no death
        try:
            for mount in reversed(mounts_at(target)):
                await self._unmount_one(mount, lazy=lazy)
        except MountError:
            if served is not None:
                self._serving[target] = served
            raise

    def mounted(self, root: Path) -> list[MountPoint]:
        """The mounts at ``root`` or below that somebody serves."""
        return [mount for mount in _trees(root) if self._children.is_alive(mount.source)]

    def lost(self, target: Path, *, session_is_new: bool) -> bool:  # noqa: ARG002 - EROFS mounts depend on it
        """Whether what lies on ``target`` can not be read any more."""
        mounts = mounts_at(target)
        return bool(mounts) and mounts[-1].fstype == FSTYPE and not self._children.is_alive(mounts[-1].source)

    def look(self) -> None:
        """A child may have died: do not wait to see."""
        self._look.set()

    async def watch(self) -> None:
        """For ever: notice children that died."""
        while True:
            self._look.clear()
            try:
                async with asyncio.timeout(_WATCH_SECONDS):
                    await self._look.wait()
                    await asyncio.sleep(0.05)  # it hangs up before it is dead
            except TimeoutError:
                pass
            for target, served in list(self._serving.items()):
                if not self._children.is_alive(served.token):
                    del self._serving[target]
                    self._children.forget(served.token)
                    self.deaths += 1
                    log.error("the process that serves %s has died: containers that run on it get errors", target)
                    self.on_lost(target, time.monotonic() - served.since)

    async def _clear(self, target: Path) -> None:
        """Detach what nobody serves."""
        for mount in reversed(mounts_at(target)):
            if mount.fstype == FSTYPE and not self._children.is_alive(mount.source):
                await mounting.unmount(target, UnmountFlag.DETACH)
                self._children.forget(mount.source)

    async def _unmount_one(self, mount: MountPoint, *, lazy: bool) -> None:
        try:
            await mounting.unmount(mount.path, UnmountFlag.DETACH if lazy else UnmountFlag.NO_FOLLOW)
        except MountError as exc:
            if exc.code != errno.EINVAL or mount in mounts_at(mount.path):  # EINVAL: somebody else was faster
                raise
        if mount.fstype == FSTYPE and not lazy and not await self._children.ended(mount.source, _END_SECONDS):
            log.info("what was mounted on %s has other users still; its process ends with them", mount.path)


def _trees(root: Path) -> list[MountPoint]:
    return [mount for mount in mounts_below(root) if mount.fstype == FSTYPE]
