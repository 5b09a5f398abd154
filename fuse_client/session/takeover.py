"""The mount that a session serves: made once, then handed from daemon to daemon.

1. Lock the run directory. A daemon that was just killed may need a moment to die, so wait a little.
2. Ask the keeper for the descriptor. If it has one, the mount is alive, INIT is long done, and the session
   goes on where the last daemon stopped (``resumed``).
3. Else clear away what a lost keeper left, mount, answer INIT, and only then leave a copy with the keeper. A
   daemon killed in between takes the fresh, still unused mount with it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from fastpull.fuse_client.drivers.mounts import UnmountFlag, is_mounted, unmount
from fastpull.fuse_client.session.answers import agree
from fastpull.fuse_client.session.channel import Connection
from fastpull.fuse_client.session.errors import KeeperError, SessionLockedError
from fastpull.fuse_client.session.fuse_mount import mount_fuse, read_init
from fastpull.fuse_client.session.journal import RequestJournal
from fastpull.fuse_client.session.keeper import FdKeeper

log = logging.getLogger(__name__)

DEVICES = "devices"
_FUSE = "fuse-devices"  # what the keeper keeps: the connection
_REQUESTS = "fuse-requests.1"  # and the journal of its requests; another layout takes another name
_LOCK = "session.lock"
_LOCK_SECONDS = 15.0


class SessionLock:
    """At most one daemon per run directory. Goes with the process, however that ends."""

    def __init__(self, run_dir: Path, *, wait_seconds: float = _LOCK_SECONDS) -> None:
        """Blocks. Raise ``SessionLockedError`` when another daemon still has it after ``wait_seconds``."""
        path = run_dir / _LOCK
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as exc:
                if time.monotonic() >= deadline:
                    owner = os.pread(self._fd, 32, 0).decode(errors="replace").strip()
                    os.close(self._fd)
                    raise SessionLockedError(str(path), f"pid {owner}" if owner else "just started") from exc
                time.sleep(0.02)
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        os.close(self._fd)


class DevicesMount:
    """The FUSE mount at ``RUN_DIR/devices``, with the lock and a copy of the descriptor."""

    def __init__(
        self, path: Path, lock: SessionLock, keeper: FdKeeper, connection: Connection, *, resumed: bool, lost: bool
    ) -> None:
        self.path = path
        self.resumed = resumed
        """An earlier daemon served this mount; its open files go on."""
        self.lost = lost
        """An earlier mount was here and its descriptor is gone: what was mounted on top of it is broken."""
        self._lock = lock
        self._keeper = keeper
        self._connection = connection

    @classmethod
    def open(
        cls, run_dir: Path, find: Callable[[Path], FdKeeper], *, lock_seconds: float = _LOCK_SECONDS
    ) -> DevicesMount:
        """Take the mount of ``run_dir`` over, or make it; ``find`` gives the keeper once the lock is held.

        Blocks for milliseconds, or up to ``lock_seconds`` while another daemon dies. Raise ``SessionError``,
        or ``MountError`` where the kernel refuses.
        """
        run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = run_dir.resolve() / DEVICES
        lock = SessionLock(run_dir, wait_seconds=lock_seconds)
        keeper: FdKeeper | None = None
        try:
            keeper = find(run_dir)
            fuse = keeper.take(_FUSE)
            # From here on nothing may touch the mounted directory: nobody serves it yet.
            mounted = is_mounted(path)
            if fuse is not None:
                if not mounted:
                    log.error("%s was unmounted while in use: new images can not be mounted", path)
                connection = Connection(fuse, keeper.take(_REQUESTS) or _new_journal(keeper))
                return cls(path, lock, keeper, connection, resumed=True, lost=False)
            while is_mounted(path):
                unmount(path, UnmountFlag.DETACH)
            if mounted:
                log.error("the descriptor of %s is lost: what is mounted on top of it can not be read any more", path)
            return cls(path, lock, keeper, _mount_and_keep(path, keeper), resumed=False, lost=mounted)
        except BaseException:
            if keeper is not None:
                keeper.close()
            lock.release()
            raise

    @property
    def keeper(self) -> FdKeeper:
        return self._keeper

    def descriptor(self) -> Connection:
        """A copy of the connection, for one ``FuseSession``."""
        return Connection(*map(os.dup, self._connection))

    def keep_again(self, keeper: FdKeeper) -> None:
        """Leave a copy with a new keeper, after the old one was lost. Raise ``KeeperError``."""
        keeper.put(_REQUESTS, self._connection.requests)
        keeper.put(_FUSE, self._connection.fuse)
        self._keeper.close()
        self._keeper = keeper

    def unmount(self) -> None:
        """End the mount for good. Unmount what lies on top of it before: it will not be readable any more.

        Readers that still wait get an error. Call it with the session closed. Raise ``MountError``.
        """
        try:
            while is_mounted(self.path):
                unmount(self.path, UnmountFlag.FORCE | UnmountFlag.DETACH)
        finally:
            try:
                self._keeper.drop(_FUSE)
                self._keeper.drop(_REQUESTS)
            except KeeperError as exc:
                log.warning("%s", exc)

    def close(self) -> None:
        """Leave the mount to the next daemon."""
        for fd in self._connection:
            os.close(fd)
        self._keeper.close()
        self._lock.release()


def _mount_and_keep(path: Path, keeper: FdKeeper) -> Connection:
    path.mkdir(mode=0o700, exist_ok=True)
    fuse = mount_fuse(path)
    try:
        _agreement, body = agree(read_init(fuse))
        os.write(fuse, body)
        requests = _new_journal(keeper)
        keeper.put(_FUSE, fuse)
    except BaseException:
        unmount(path, UnmountFlag.FORCE | UnmountFlag.DETACH)
        os.close(fuse)
        raise
    return Connection(fuse, requests)


def _new_journal(keeper: FdKeeper) -> int:
    requests = RequestJournal.create()
    keeper.put(_REQUESTS, requests)
    return requests
