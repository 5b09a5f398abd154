"""Which layer brought what stands on a device."""

from __future__ import annotations

from fastpull.cache.digest import chunk_id
from fastpull.image import chunk_map
from fastpull.image.chunk_map import ChunkMap
from fastpull.image.layer_index import CHUNK_REF, Entry, EntryType, LayerIndex
from fastpull.image.place_layers import NO_LAYER, place_layers

A, B, C, D = (chunk_id(name) for name in (b"a", b"b", b"c", b"d"))


def layer(*chunks: bytes) -> LayerIndex:
    refs = b"".join(CHUNK_REF.pack(chunk, 10) for chunk in chunks)
    return LayerIndex("sha256:" + "0" * 64, [Entry(b"file", EntryType.FILE, size=10 * len(chunks), chunks=refs)])


def test_a_chunk_belongs_to_the_lowest_layer_that_holds_it() -> None:
    """A file that is written again with the same content brings nothing; what no layer holds is told apart."""
    pieces = ChunkMap.open(chunk_map.pack([(n * 4096, 10, chunk) for n, chunk in enumerate((C, A, B, D))], 4 * 4096))

    assert list(place_layers([layer(A, B), layer(B, C)], pieces)) == [1, 0, 0, NO_LAYER]
