"""Settings of ``fastpull-proxy``. Every key has a default that works on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from fastpull.config.base import Settings
from fastpull.config.units import ByteSize, GiB, MiB


class ListenSettings(Settings, frozen=True, kw_only=True):
    """Where ``/v2``, ``/v1``, ``/healthz`` and ``/metrics`` are served."""

    address: str = "127.0.0.1"
    port: int = 5050
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None  # mTLS: only clients with a certificate of this CA
    # Processes that share the port (SO_REUSEPORT) and the store; 0 = one per core. Not those of ``ingest.workers``.
    workers: Annotated[int, msgspec.Meta(ge=0, le=64)] = 1
    access_log: bool = False  # JSON lines on standard error


class CredentialSettings(Settings, frozen=True, kw_only=True):
    """How to log in to one upstream. At most one of the groups is given; none = anonymous."""

    kind: Literal["anonymous", "basic", "docker-config", "ecr", "gar"] = "anonymous"
    username: str = ""
    password: str = ""  # a secret; prefer password_file or password_env
    password_file: Path | None = None
    password_env: str = ""
    docker_config: Path | None = None
    region: str = ""  # ecr
    endpoint: str = ""  # ecr and gar: another API endpoint, for tests and private links

    def __repr__(self) -> str:
        return f"CredentialSettings(kind={self.kind!r}, username={self.username!r}, secrets hidden)"


class UpstreamSettings(Settings, frozen=True, kw_only=True):
    """One registry in front of which the proxy stands."""

    url: str = ""  # default https://<name>; docker.io means https://registry-1.docker.io
    credentials: CredentialSettings = CredentialSettings()
    token_hosts: tuple[str, ...] = ()  # further hosts that a bearer realm may name
    redirect_private: bool = False  # may redirects lead to private addresses (a registry at home)?
    parallel_ranges: int = 4  # concurrent Range requests for one large blob; 1 = one stream
    ca_file: Path | None = None


DEFAULT_UPSTREAMS: dict[str, UpstreamSettings] = {
    "docker.io": UpstreamSettings(url="https://registry-1.docker.io", token_hosts=("auth.docker.io",)),
    "ghcr.io": UpstreamSettings(),
    "quay.io": UpstreamSettings(),
    "nvcr.io": UpstreamSettings(token_hosts=("authn.nvidia.com",)),
    "registry.k8s.io": UpstreamSettings(),
    "public.ecr.aws": UpstreamSettings(),
}


class MirrorSettings(Settings, frozen=True, kw_only=True):
    """How ``/v2`` answers."""

    default_upstream: str = "docker.io"
    allow_any_upstream: bool = False
    tag_ttl_seconds: float = 60.0
    tag_max_stale_seconds: float = 7 * 86400.0
    negative_ttl_seconds: float = 5.0
    listing_ttl_seconds: float = 30.0
    connect_timeout_seconds: float = 10.0
    read_timeout_seconds: float = 30.0  # without a byte from upstream; then the transfer is resumed
    answer_timeout_seconds: float = 20.0  # until upstream's headers; containerd 2.3 gives up on ours after 30
    range_bytes: ByteSize = ByteSize(8 * MiB)  # size of one parallel upstream range
    holdback_bytes: ByteSize = ByteSize(64 * 1024)  # kept from readers until the digest is right
    linger_seconds: float = 30.0  # an abandoned fill goes on this long
    mismatch_seconds: float = 60.0  # a blob that came wrong is answered with 503 for so long
    resume_attempts: int = 5  # for a broken transfer that brings no new byte, with growing pauses (13 s in all)


class CacheSettings(Settings, frozen=True, kw_only=True):
    """What bounds the stores under ``data_dir``: quotas, and for what has none the time."""

    chunk_bytes: ByteSize = ByteSize(100 * GiB)
    blob_bytes: ByteSize = ByteSize(50 * GiB)
    # Layer indexes, built chains and plans that nobody asked for so long are removed, unless their image was warmed;
    # they are made again when they are needed. Looked at once an hour. 0 = never.
    unused_seconds: Annotated[float, msgspec.Meta(ge=0)] = 30 * 86400.0


class IngestSettings(Settings, frozen=True, kw_only=True):
    """When layers become chunks, and what is refused (a refused layer is pulled as always)."""

    trigger: Literal["on-pull", "on-warm"] = "on-pull"
    workers: int = 0  # processes; 0 = one per core
    zstd_level: int = 1
    stall_seconds: float = 300.0  # without progress, then a worker process is killed and its layers fail
    max_entries: int = 2_000_000
    max_path_bytes: int = 4096
    max_layer_bytes: ByteSize = ByteSize(200 * GiB)
    max_ratio: float = 1000.0  # uncompressed / compressed


class ProxySettings(Settings, frozen=True, kw_only=True):
    """Everything ``fastpull-proxy serve`` can be told."""

    data_dir: Path = Path("/var/lib/fastpull-proxy")
    listen: ListenSettings = ListenSettings()
    mirror: MirrorSettings = MirrorSettings()
    cache: CacheSettings = CacheSettings()
    ingest: IngestSettings = IngestSettings()
    upstreams: dict[str, UpstreamSettings] = {}  # added to, or replacing, DEFAULT_UPSTREAMS

    @property
    def all_upstreams(self) -> dict[str, UpstreamSettings]:
        return {**DEFAULT_UPSTREAMS, **self.upstreams}
