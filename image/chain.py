"""A chain of layers becomes something mountable: bootstrap and chunk map. Pure, reproducible."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fastpull.cache.digest import ChunkId
from fastpull.image import chunk_map
from fastpull.image.erofs import layout
from fastpull.image.erofs.writer import write_bootstrap
from fastpull.image.errors import IndexFormatError
from fastpull.image.layer_index import CHUNK_REF, EntryType, LayerIndex
from fastpull.image.node import Node
from fastpull.image.tree import Tree, merge


@dataclass(frozen=True, slots=True)
class BuiltChain:
    """What a node mounts, and what it says about the chain."""

    bootstrap: bytes
    chunk_map: bytes
    device_bytes: int
    content_bytes: int  # on the device, without the gaps of alignment; the same content counts once
    chunks: int  # places on the device, as ``len(ChunkMap)``
    entries: int  # paths, the root included


def build_chain(layers: Sequence[LayerIndex]) -> BuiltChain:
    """Build the chain of ``layers``, bottom first. The same layers give the same bytes.

    Raise ``LayerFormatError`` for a layer that no file system can hold, ``LimitExceededError`` for a tree
    that EROFS can not hold, ``IndexFormatError`` for a file whose chunks do not add up to its size.
    """
    tree = merge(layers)
    places = _Device()
    entries = places.fill(tree)
    name = hashlib.sha256("\n".join(layer.diff_id for layer in layers).encode()).digest()
    return BuiltChain(
        write_bootstrap(tree, places.of, places.length, name),
        chunk_map.pack(places.chunks(), places.length),
        places.length,
        places.content_bytes,
        places.chunk_count,
        entries,
    )


class _Device:
    """Gives each file's content its place: in the order of the tree, so that neighbours stand together.

    Every place begins with a block, as the kernel maps whole blocks. Files with the same chunks share one.
    """

    def __init__(self) -> None:
        self.of: dict[Node, int] = {}
        self.length = layout.BLOCK  # never empty: an empty file is no device
        self.content_bytes = 0
        self.chunk_count = 0
        self._contents: dict[bytes, int] = {}  # chunk list → offset, ascending

    def fill(self, tree: Tree) -> int:
        """Place all files; return the number of paths."""
        entries = 0
        end = 0
        for path, node in tree.walk():
            entries += 1
            if node.type is not EntryType.FILE or node in self.of:
                continue
            count, rest = divmod(len(node.chunks), CHUNK_REF.size)
            if rest or sum([size for _, size in CHUNK_REF.iter_unpack(node.chunks)]) != node.size:
                raise IndexFormatError(f"{path!r} has {node.size} bytes, but its chunks have not")
            if not node.size:
                continue
            offset = self._contents.setdefault(node.chunks, end)
            if offset == end:
                end += node.size + -node.size % layout.BLOCK
                self.content_bytes += node.size
                self.chunk_count += count
            self.of[node] = offset
        self.length = max(end, layout.BLOCK)
        return entries

    def chunks(self) -> Iterator[tuple[int, int, ChunkId]]:
        for refs, offset in self._contents.items():
            for chunk, size in CHUNK_REF.iter_unpack(refs):
                yield offset, size, ChunkId(chunk)
                offset += size
