"""The snapshotter on its unix socket."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import grpc

from fastpull.cache.tables import Database
from fastpull.fuse_client.errors import DaemonError
from fastpull.fuse_client.snapshotter.directories import SnapshotDirectories
from fastpull.fuse_client.snapshotter.journal import LmdbJournal
from fastpull.fuse_client.snapshotter.lazy_chains import QUIET_SECONDS, Chains, LazyChains
from fastpull.fuse_client.snapshotter.loop_calls import MAX_WAITING, LoopCalls
from fastpull.fuse_client.snapshotter.operations import Snapshotter
from fastpull.fuse_client.snapshotter.service import SnapshotsService, handlers
from fastpull.fuse_client.snapshotter.state import SnapshotState

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 16 << 20  # containerd's own limit, both ways (defaults.DefaultMaxRecvMsgSize)
_THREADS = MAX_WAITING + 16
_STOP_SECONDS = 5.0


class SnapshotServer:
    """containerd's snapshotter, served from threads of its own: a busy event loop delays no Stat.

    ``start`` answers at once from the records on disk. Calls that need a mount wait until mounts are allowed.
    ``aclose`` stops answering and leaves every mount and directory as it is.
    """

    def __init__(self, snapshotter: Snapshotter, lazy: LazyChains, path: Path) -> None:
        self.snapshotter = snapshotter
        self._lazy = lazy
        self._path = path
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="snapshots"),
            handlers=(handlers(SnapshotsService(snapshotter)),),
            options=(
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.so_reuseport", 0),
            ),
        )

    @classmethod
    def build(
        cls,
        *,
        path: Path,
        root: Path,
        database: Database,
        chains: Chains,
        prepare_wait_seconds: float,
        quiet_seconds: float = QUIET_SECONDS,
        step: Callable[[str], None] = lambda _: None,
    ) -> Self:
        """Wire the snapshotter. To be called on the event loop on which ``chains`` lives.

        ``database`` holds ``journal.TABLES``. Directories are made beneath ``root``.
        """
        lazy = LazyChains(chains, quiet_seconds=quiet_seconds)
        snapshotter = Snapshotter(
            SnapshotState(LmdbJournal(database)),
            SnapshotDirectories(root),
            lazy,
            LoopCalls(asyncio.get_running_loop()),
            prepare_wait_seconds=prepare_wait_seconds,
            overlay_options=_overlay_options(),
            step=step,
        )
        return cls(snapshotter, lazy, path)

    def start(self, *, allow_mounts: bool = True) -> None:
        """Serve. ``allow_mounts``: the chains that an earlier daemon had mounted are registered already.

        Raise ``DaemonError`` when another process serves the socket, or it can not be made."""
        self._path.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
        if _is_served(self._path):
            raise DaemonError(
                f"{self._path}: another process serves this socket", remedy="stop it, or choose another socket"
            )
        self._path.unlink(missing_ok=True)
        try:
            self._server.add_insecure_port(f"unix:{self._path}")
        except RuntimeError as exc:
            raise DaemonError(f"{self._path}: the socket can not be made: {exc}") from exc
        self._path.chmod(0o600)
        self._server.start()
        if allow_mounts:
            self.allow_mounts()
        log.info("the snapshotter listens on %s", self._path)

    def allow_mounts(self) -> None:
        """``chains`` knows again what it had mounted before. To be called once, on the event loop.

        Leftovers of a crash are removed in the background.
        """
        self._lazy.allow_mounts()
        # A thread that nobody waits for: it may be at it for long, and may be ended at any point.
        threading.Thread(target=self.snapshotter.tidy_up, name="tidy up", daemon=True).start()

    async def aclose(self) -> None:
        """Stop answering: calls in flight get a few seconds to end. The event loop must still run for them."""
        stopped = self._server.stop(_STOP_SECONDS)
        await asyncio.to_thread(stopped.wait)
        await self._lazy.aclose()


def _is_served(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def _overlay_options() -> tuple[str, ...]:
    # As containerd's own overlay snapshotter: with index=on a lower directory can not be shared by two uppers.
    return ("index=off",) if Path("/sys/module/overlay/parameters/index").exists() else ()
