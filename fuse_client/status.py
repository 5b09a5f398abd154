"""The answer to "how is this node": for ``fastpull-node status``, as JSON, and for the metrics."""

from __future__ import annotations

import importlib.metadata

import msgspec

from fastpull.fuse_client.drivers.probe import KernelFeatures


class StatusMessage(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the parts."""


class ChainStatus(StatusMessage, frozen=True, kw_only=True):
    chain_id: str
    path: str
    users: tuple[str, ...] = ()
    chunks: int
    content_bytes: int
    local_chunks: int = -1  # -1 = not counted, it takes a moment
    local_bytes: int = -1
    planned_chunks: int = 0
    reads: int = 0
    misses: int = 0
    damaged: int = 0


class CacheStatus(StatusMessage, frozen=True, kw_only=True):
    chunks: int
    live_bytes: int
    file_bytes: int
    quota_bytes: int
    failure: str = ""  # why chunks are not stored at the moment


class ProxyStatus(StatusMessage, frozen=True, kw_only=True):
    url: str
    is_up: bool
    last_error: str = ""


class FetchStatus(StatusMessage, frozen=True, kw_only=True):
    queued_chunks: int
    requests: int
    received_bytes: int
    content_bytes: int
    retries: int
    failed_reads: int
    waited_seconds: float


class PortableStatus(StatusMessage, frozen=True, kw_only=True):
    """Of the portable driver; all 0 where EROFS serves all mounts."""

    processes: int = 0  # one for each mount
    deaths: int = 0  # since the daemon started


class NodeStatus(StatusMessage, frozen=True, kw_only=True):
    version: str
    pid: int
    root: str
    driver: str
    driver_reason: str
    portable: PortableStatus = PortableStatus()
    kernel: KernelFeatures
    holder: str
    holder_is_up: bool
    snapshotter: str  # its socket; empty = not served
    chains: tuple[ChainStatus, ...]
    cache: CacheStatus
    proxies: tuple[ProxyStatus, ...]
    fetch: FetchStatus
    traces_waiting: int = 0


def version() -> str:
    """Of the installed distribution."""
    return importlib.metadata.version("fastpull-proxy")
