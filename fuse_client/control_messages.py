"""What ``fastpull-node`` and its daemon say to each other over ``RUN_DIR/control.sock``."""

from __future__ import annotations

import msgspec

SOCKET_NAME = "control.sock"


class MountRequest(msgspec.Struct, frozen=True, kw_only=True):
    chain_id: str
    user: str  # who wants it, for example "dir:/mnt"


class MountAnswer(msgspec.Struct, frozen=True, kw_only=True):
    path: str


class ReleaseRequest(msgspec.Struct, frozen=True, kw_only=True):
    chain_id: str
    user: str


class StopRequest(msgspec.Struct, frozen=True, kw_only=True):
    keep_mounts: bool = False  # leave all for the next daemon
    force: bool = False  # unmount also what containerd uses
