"""``fastpull-node stop``: end the daemon."""

from __future__ import annotations

import time

from fastpull.config.node import NodeSettings
from fastpull.fuse_client.cli.connection import DaemonConnection
from fastpull.fuse_client.errors import DaemonError

_END_SECONDS = 60.0


def stop(settings: NodeSettings, *, keep_mounts: bool, force: bool) -> int:
    """Run the command, wait until the daemon has ended; return the exit code."""
    daemon = DaemonConnection(settings.run_dir)
    daemon.stop(keep_mounts=keep_mounts, force=force)
    deadline = time.monotonic() + _END_SECONDS
    while daemon.is_served:
        if time.monotonic() > deadline:
            raise DaemonError("the daemon does not end", remedy="look into its log")
        time.sleep(0.02)
    return 0
