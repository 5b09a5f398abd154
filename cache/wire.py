"""What the proxy and the node say to each other: the JSON of ``/v1``.

Digests travel as text (``sha256:…``), chunk ids as hex. Unknown fields are ignored, so that a newer
side may add some; a field is never given another meaning. The binary frames are in ``frames.py``.
"""

from __future__ import annotations

from typing import Literal

import msgspec

API_VERSION = 1

LayerStage = Literal["waiting", "fetching", "indexing", "ready", "failed"]
WarmStage = Literal["resolving", "working", "done", "failed"]


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """Base of all messages."""


class LayerProgress(Message, frozen=True, kw_only=True):
    digest: str  # of the compressed blob
    diff_id: str
    media_type: str = ""
    stage: LayerStage = "waiting"
    blob_bytes: int = 0  # compressed size
    fetched_bytes: int = 0  # of blob_bytes, come from upstream or already here
    indexed_bytes: int = 0  # of blob_bytes, gone through the ingest
    content_bytes: int = 0  # uncompressed file content, known at the end
    new_bytes: int = 0  # of content_bytes, not in the store before
    files: int = 0
    error: str = ""


class ChainState(Message, frozen=True, kw_only=True):
    """``GET /v1/chains/{chainID}``."""

    chain_id: str
    state: Literal["ready", "indexing", "unknown", "failed"]
    layers: tuple[LayerProgress, ...] = ()
    bootstrap_digest: str = ""  # sha256 of the uncompressed artifacts
    bootstrap_bytes: int = 0
    chunk_map_digest: str = ""
    chunk_map_bytes: int = 0
    device_bytes: int = 0
    content_bytes: int = 0
    chunks: int = 0
    error: str = ""


class ImageInfo(Message, frozen=True, kw_only=True):
    """``GET /v1/images?ref=…&platform=…``: a reference, resolved."""

    image: str  # normalised reference
    manifest_digest: str
    chain_id: str
    platform: str
    diff_ids: tuple[str, ...]
    layer_digests: tuple[str, ...]
    config: msgspec.Raw = msgspec.Raw(b"{}")  # the OCI image config, verbatim


class WarmRequest(Message, frozen=True, kw_only=True):
    """``POST /v1/warm``."""

    image: str
    platform: str = ""  # os/arch[/variant]; empty = the proxy's own


class WarmState(Message, frozen=True, kw_only=True):
    """``GET /v1/warm/{id}``."""

    id: str
    image: str
    stage: WarmStage
    chain_id: str = ""
    manifest_digest: str = ""
    layers: tuple[LayerProgress, ...] = ()
    seconds: float = 0.0
    error: str = ""
    remedy: str = ""


class ChainLayers(Message, frozen=True, kw_only=True):
    """``GET /v1/chains/{chainID}/layers``: which layer brought what stands on the device."""

    chain_id: str
    diff_ids: tuple[str, ...]  # lowest first
    of_places: bytes  # u16 little-endian for each place of the chunk map: number of the lowest layer with that chunk


class Trace(Message, frozen=True, kw_only=True):
    """``POST /v1/traces``: one start, as the node saw it. Chunk ids in order of first need."""

    chain_id: str
    node: str = ""
    started_at: float = 0.0  # seconds since the epoch
    seconds: float = 0.0
    chunks: tuple[str, ...] = ()  # hex
    at_ms: tuple[int, ...] = ()  # of each chunk's first need
    ended_by: Literal["settled", "limit", "unmount"] = "settled"


class Plan(Message, frozen=True, kw_only=True):
    """``GET /v1/chains/{chainID}/plan``."""

    chain_id: str
    version: int = 1
    chunks: tuple[str, ...] = ()  # hex, in the order in which starts need them
    starts: int = 0  # traces behind it
    inherited_from: str = ""  # chainID, when learned elsewhere


class ErrorBody(Message, frozen=True, kw_only=True):
    """The body of every ``/v1`` answer of 400 and above."""

    error: str
    remedy: str = ""
