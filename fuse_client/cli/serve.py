"""``fastpull-node serve``."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import logging
import os

import uvloop

from fastpull.config.node import NodeSettings
from fastpull.fuse_client import daemon
from fastpull.fuse_client.errors import DaemonError


def serve(settings: NodeSettings, *, log_level: str, snapshotter: bool, ready_fd: int) -> int:
    """Run until stopped; return the exit code."""
    if os.geteuid() != 0:
        raise DaemonError("the node daemon mounts file systems", remedy="run it as root")
    faulthandler.enable()  # a disk that fails under a memory map is SIGBUS: say where
    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("asyncio").setLevel(logging.WARNING)

    def ready() -> None:
        if ready_fd >= 0:
            with contextlib.suppress(OSError):
                os.write(ready_fd, b"ready\n")
                os.close(ready_fd)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(daemon.serve(settings, snapshotter=snapshotter, ready=ready))
    return 0
