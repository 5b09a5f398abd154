"""What stands in a newer image where a chunk stood in an older one: the same path, the same place in the file. Pure.

A package's next version has most of its files at the same paths, with other content. Who read one of them will read it
again.
"""

from __future__ import annotations

from functools import cache

from fastpull.cache.digest import ChunkId
from fastpull.image.chunk_map import ChunkMap
from fastpull.image.erofs.reader import Bootstrap, Extent
from fastpull.image.file_places import FilePlaces


class Counterparts:
    """From the chunks of one chain to those of another. Walks the older tree once: 0.3 s for 45,000 files."""

    def __init__(self, older: Bootstrap, older_chunks: ChunkMap, newer: Bootstrap, newer_chunks: ChunkMap) -> None:
        self._places = FilePlaces.of(older)
        self._older_chunks = older_chunks
        self._newer_chunks = newer_chunks

        @cache  # the chunks of a large file come one after the other
        def extent(path: bytes) -> Extent | None:
            inode = newer.lookup(path)
            return newer.content(inode) if inode is not None and inode.is_file else None

        self._extent = extent

    def of(self, chunk: ChunkId) -> list[int]:
        """Places in the newer chunk map; none where the file is gone or shorter.

        Raise ``IndexFormatError`` for a damaged bootstrap.
        """
        index = self._older_chunks.index_of(chunk)
        if index is None:
            return []
        offset = self._older_chunks.offset_at(index)
        file = self._places.at(offset)
        extent = self._extent(file.path) if file is not None else None
        if file is None or extent is None:
            return []
        start = offset - file.offset
        length = min(self._older_chunks.size_at(index), extent.size - start)
        return [piece.index for piece in self._newer_chunks.pieces(extent.offset + start, length)]
