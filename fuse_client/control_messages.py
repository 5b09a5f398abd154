"""What ``fastpull-node`` and its daemon share in ``RUN_DIR``, and say to each other over its control socket."""

from __future__ import annotations

import msgspec

SOCKET_NAME = "control.sock"
FEATURES_FILE = "kernel.json"  # ``KernelFeatures``, found out by the first daemon since the boot


class MountRequest(msgspec.Struct, frozen=True, kw_only=True):
    chain_id: str
    user: str  # who wants it, for example "dir:/mnt"
    start: bool = False  # something starts from it: fetch ahead, and trace


class MountAnswer(msgspec.Struct, frozen=True, kw_only=True):
    path: str


class ReleaseRequest(msgspec.Struct, frozen=True, kw_only=True):
    chain_id: str
    user: str


class StopRequest(msgspec.Struct, frozen=True, kw_only=True):
    keep_mounts: bool = False  # leave all for the next daemon
    force: bool = False  # unmount also what containerd uses
