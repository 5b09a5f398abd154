"""What a warm run has done, in figures. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from fastpull.cache.wire import LayerProgress, Message, WarmState


class WarmSummary(Message, frozen=True, kw_only=True):
    """The last line of ``warm``, and its whole output with ``--json``."""

    image: str
    stage: str
    manifest_digest: str
    chain_id: str
    layers: int
    files: int
    blob_bytes: int  # compressed
    content_bytes: int  # uncompressed file content
    new_bytes: int  # of content_bytes, not in the store before this run
    seconds: float
    error: str = ""
    remedy: str = ""


def summarise(state: WarmState) -> WarmSummary:
    return WarmSummary(
        image=state.image,
        stage=state.stage,
        manifest_digest=state.manifest_digest,
        chain_id=state.chain_id,
        layers=len(state.layers),
        files=sum(layer.files for layer in state.layers),
        blob_bytes=sum(layer.blob_bytes for layer in state.layers),
        content_bytes=sum(layer.content_bytes for layer in state.layers),
        new_bytes=sum(layer.new_bytes for layer in unique(state.layers)),
        seconds=state.seconds,
        error=state.error,
        remedy=state.remedy,
    )


def unique(layers: Iterable[LayerProgress]) -> list[LayerProgress]:
    """An image may hold one layer twice; it travels and is indexed once."""
    return list({layer.diff_id: layer for layer in layers}.values())


@dataclass(frozen=True, slots=True)
class Totals:
    """How far a warm run is, in compressed bytes."""

    done_bytes: int
    all_bytes: int
    ready_layers: int
    all_layers: int

    @classmethod
    def of(cls, state: WarmState) -> Totals:
        layers = unique(state.layers)
        return cls(
            done_bytes=sum(done(layer) for layer in layers),
            all_bytes=sum(layer.blob_bytes for layer in layers),
            ready_layers=sum(layer.stage == "ready" for layer in layers),
            all_layers=len(layers),
        )


def done(layer: LayerProgress) -> int:
    return layer.blob_bytes if layer.stage == "ready" else min(layer.indexed_bytes, layer.blob_bytes)
