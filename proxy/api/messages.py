"""What the proxy and its own commands say to each other beyond ``cache/wire.py``."""

from __future__ import annotations

from fastpull.cache.wire import LayerProgress, Message


class StoreStatus(Message, frozen=True, kw_only=True):
    """One store: how many things it holds and how far it is from its quota."""

    entries: int | None = None  # where they are counted
    live_bytes: int = 0
    file_bytes: int = 0
    quota_bytes: int = 0


class FillStatus(Message, frozen=True, kw_only=True):
    """A blob on its way from upstream."""

    digest: str
    upstream: str
    repository: str
    bytes: int  # on disk so far, from earlier attempts too
    size: int | None = None  # ``None`` = upstream has not told
    readers: int  # who follow it now; an abandoned fill goes on for a while
    seconds: float  # since this attempt began


class StatusReport(Message, frozen=True, kw_only=True):
    """``GET /v1/status``."""

    version: str
    seconds: float  # since the start
    data_dir: str
    ready: bool
    problem: str = ""  # why not ready
    images: int = 0
    chunks: StoreStatus = StoreStatus()
    blobs: StoreStatus = StoreStatus()
    fills: tuple[FillStatus, ...] = ()  # running now, the oldest first
    ingests: tuple[LayerProgress, ...] = ()  # running now
    failed: tuple[LayerProgress, ...] = ()  # since the start


class ImageSummary(Message, frozen=True, kw_only=True):
    """One image that the proxy has seen."""

    names: tuple[str, ...]
    manifest_digest: str
    chain_id: str
    platform: str
    state: str
    layers: int
    blob_bytes: int
    seen_at: float  # seconds since the epoch
    warmed: bool


class ImageList(Message, frozen=True, kw_only=True):
    """``GET /v1/images`` without ``ref``."""

    images: tuple[ImageSummary, ...]


class Purged(Message, frozen=True, kw_only=True):
    """``DELETE /v1/images?ref=…`` and ``DELETE /v1/tags?ref=…``: what is gone."""

    image: str
    tags: int = 0
    images: int = 0
    layers: int = 0
    chunk_bytes: int = 0
    blob_bytes: int = 0


class PlanChange(Message, frozen=True, kw_only=True):
    """``PUT`` and ``DELETE /v1/chains/{chainID}/plan``."""

    chain_id: str
    chunks: int = 0
    dropped: int = 0  # of the plan's chunks, not in this chain
