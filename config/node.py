"""Settings of ``fastpull-node``. Every key has a default that works on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fastpull.config.base import Settings
from fastpull.config.units import ByteSize, GiB, MiB


class SnapshotterSettings(Settings, frozen=True, kw_only=True):
    socket: Path = Path("/run/fastpull/snapshotter.sock")
    # How long a pull waits for an image that is being indexed. Long, because the other way, an ordinary pull, begins
    # at zero and takes longer than the rest of the index; an index that fails ends the wait at once.
    prepare_wait_seconds: float = 600.0


class NodeCacheSettings(Settings, frozen=True, kw_only=True):
    max_bytes: ByteSize = ByteSize(50 * GiB)
    verify: Literal["once", "always"] = "once"  # chunks against their id: first read since start, or each


class FetchSettings(Settings, frozen=True, kw_only=True):
    connections: int = 8  # HTTP/1.1 connections to the proxy
    batch_bytes: ByteSize = ByteSize(1 * MiB)
    window_bytes: ByteSize = ByteSize(2 * MiB)  # neighbours fetched around a demand miss, at most
    retry_seconds: float = 300.0  # then EIO for the read in question
    request_timeout_seconds: float = 30.0


class PrefetchSettings(Settings, frozen=True, kw_only=True):
    enabled: bool = True
    connections: int = 4  # of fetch.connections, at most
    backfill: bool = False  # after the plan, the rest of the image
    max_bytes_per_second: ByteSize = ByteSize(0)  # backfill only; 0 = no limit
    jitter_seconds: float = 0.0
    warm_page_cache: bool = False


class TraceSettings(Settings, frozen=True, kw_only=True):
    enabled: bool = True
    settle_seconds: float = 10.0  # no new first touch for so long ends a trace
    max_seconds: float = 600.0


class TlsSettings(Settings, frozen=True, kw_only=True):
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class NodeSettings(Settings, frozen=True, kw_only=True):
    """Everything ``fastpull-node serve`` can be told."""

    root: Path = Path("/var/lib/containerd/io.containerd.snapshotter.v1.fastpull")
    run_dir: Path = Path("/run/fastpull")
    proxies: tuple[str, ...] = ("http://127.0.0.1:5050",)
    driver: Literal["auto", "erofs", "fuse"] = "auto"
    metrics_address: str = "127.0.0.1"
    metrics_port: int = 0  # 0 = no metrics listener
    tls: TlsSettings = TlsSettings()
    snapshotter: SnapshotterSettings = SnapshotterSettings()
    cache: NodeCacheSettings = NodeCacheSettings()
    fetch: FetchSettings = FetchSettings()
    prefetch: PrefetchSettings = PrefetchSettings()
    trace: TraceSettings = TraceSettings()
