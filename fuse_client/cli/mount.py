"""``fastpull-node mount`` and ``umount``: an image on a directory, without containerd."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

from fastpull.config.node import NodeSettings
from fastpull.fuse_client.cli.connection import DaemonConnection
from fastpull.fuse_client.cli.images import ready_chain, warm_progress
from fastpull.fuse_client.cli.private import PrivateDaemon
from fastpull.fuse_client.drivers.mounts import MountFlag, is_mounted
from fastpull.fuse_client.drivers.mounts import mount as mount_
from fastpull.fuse_client.drivers.mounts import unmount as unmount_
from fastpull.fuse_client.errors import DaemonError, NodeError
from fastpull.fuse_client.fetch.client import ProxyClient

# mount(2)
_MS_REMOUNT = MountFlag(32)
_MS_BIND = MountFlag(4096)


def mount(
    settings: NodeSettings, image: str, platform: str, directory: Path, *, start: bool, config: Path | None
) -> int:
    """Run the command; return the exit code. Nothing stays mounted or running after a failure."""
    _need_root("mount")
    target = directory.absolute()
    if is_mounted(target.resolve()):
        raise DaemonError(f"something is mounted on {target}", remedy=f"fastpull-node umount {target}")
    chain = asyncio.run(_chain(settings, image, platform))
    target.mkdir(parents=True, exist_ok=True)
    target = target.resolve()
    daemon = DaemonConnection(settings.run_dir)
    with contextlib.ExitStack() as undo:
        if not daemon.is_served:
            private = PrivateDaemon(settings, target)
            undo.callback(_quietly, private.stop)
            private.start(config)
            daemon = private.connection
        user = user_of(target)
        path = daemon.mount(chain, user, start=start)
        undo.callback(_quietly, lambda: daemon.release(chain, user))
        # The bind is made here and not by the daemon, so that it appears where the caller looks.
        mount_(path, target, "", _MS_BIND)
        undo.callback(_quietly, lambda: unmount_(target))
        mount_("", target, "", _MS_BIND | _MS_REMOUNT | MountFlag.READ_ONLY)
        undo.pop_all()
    sys.stdout.write(f"{image} is mounted on {target}; undo with: fastpull-node umount {target}\n")
    return 0


def umount(settings: NodeSettings, directory: Path) -> int:
    """Run the command; return the exit code."""
    _need_root("unmount")
    target = directory.absolute().resolve()
    private = PrivateDaemon(settings, target)
    daemon = private.connection if private.exists else DaemonConnection(settings.run_dir)
    chains = _used_chains(daemon, user_of(target))
    if not chains and not private.exists:
        raise DaemonError(f"{target} is not mounted by fastpull-node", remedy="see what is: fastpull-node status")
    if is_mounted(target):
        try:
            unmount_(target)
        except NodeError as exc:
            raise DaemonError(str(exc), remedy=f"end what uses it; fuser -vm {target} shows what") from exc
    for chain in chains:
        daemon.release(chain, user_of(target))
    private.stop()
    return 0


def user_of(target: Path) -> str:
    """The name under which a directory uses a chain."""
    return f"dir:{target}"


def _used_chains(daemon: DaemonConnection, user: str) -> list[str]:
    if not daemon.is_served:
        return []
    return [chain.chain_id for chain in daemon.status().chains if user in chain.users]


async def _chain(settings: NodeSettings, image: str, platform: str) -> str:
    async with ProxyClient.open(settings) as client:
        with warm_progress() as progress:
            return (await ready_chain(client, image, platform, progress)).chain_id


def _quietly(undo: object) -> None:
    """Undo a step after a failure whose message is the one that counts."""
    with contextlib.suppress(NodeError, OSError):
        assert callable(undo)
        undo()


def _need_root(what: str) -> None:
    if os.geteuid() != 0:
        raise DaemonError(f"only root can {what}", remedy="run this with sudo")
