"""``fastpull-node scrub``: have the running daemon check everything it keeps on this node."""

from __future__ import annotations

from fastpull.cache.scrub_view import follow
from fastpull.config.node import NodeSettings
from fastpull.fuse_client.cli.connection import DaemonConnection
from fastpull.fuse_client.errors import DaemonError


def scrub(settings: NodeSettings, rate: int, *, as_json: bool) -> int:
    """Run to the end; return the exit code. Interrupted, the scrub ends too."""
    code = follow(DaemonConnection(settings.run_dir).scrub(rate), as_json=as_json)
    if code is None:
        raise DaemonError("the daemon ended before the scrub did", remedy="scrub again when it is back")
    return code
