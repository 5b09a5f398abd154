"""The figures of a layer index, and its chunks, without the cost of decoding all of it."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import zstandard

from fastpull.cache.digest import ChunkId
from fastpull.image.errors import IndexFormatError
from fastpull.image.layer_index import EntryType, LayerIndex


class _EntryHead(msgspec.Struct, array_like=True, gc=False):
    """The first two of an entry's fields; msgspec steps over the others without making objects of them."""

    path: msgspec.Raw
    type: int


class _IndexHead(msgspec.Struct, gc=False):
    entries: list[_EntryHead]
    content_bytes: int = 0
    new_bytes: int = 0


@dataclass(frozen=True, slots=True)
class LayerFigures:
    files: int
    content_bytes: int
    new_bytes: int


def figures_of(index: bytes) -> LayerFigures:
    """Count; call from a thread. Raise ``IndexFormatError``."""
    try:
        packed = zstandard.ZstdDecompressor().decompress(index[5:], max_output_size=2**31)
        head = msgspec.msgpack.decode(packed, type=_IndexHead)
    except (zstandard.ZstdError, msgspec.DecodeError) as exc:
        raise IndexFormatError(f"damaged layer index: {exc}") from exc
    files = sum(entry.type == EntryType.FILE for entry in head.entries)
    return LayerFigures(files, head.content_bytes, head.new_bytes)


def chunks_of(index: bytes) -> set[ChunkId]:
    """Every chunk that the layer brings; call from a thread. Raise ``IndexFormatError``."""
    return {chunk for entry in LayerIndex.from_bytes(index).entries for chunk, _ in entry.chunk_refs()}
