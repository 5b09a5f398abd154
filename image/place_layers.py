"""Which layer of a chain brought what stands on its device. Pure."""

from __future__ import annotations

from array import array
from collections.abc import Iterable

from fastpull.cache.digest import ChunkId
from fastpull.image.chunk_map import ChunkMap
from fastpull.image.layer_index import LayerIndex

NO_LAYER = 0xFFFF


def place_layers(layers: Iterable[LayerIndex], pieces: ChunkMap) -> array[int]:
    """For each place of the chunk map the number of a layer, the lowest being 0.

    A chunk that several layers hold was brought by the lowest of them, whichever file shows it: the others add
    nothing that would have to travel. ``NO_LAYER`` for what no layer holds.
    """
    brought: dict[ChunkId, int] = {}
    for number, layer in enumerate(layers):
        for entry in layer.entries:
            for chunk, _ in entry.chunk_refs():
                brought.setdefault(chunk, number)
    return array("H", (brought.get(chunk, NO_LAYER) for chunk in pieces.ids()))
