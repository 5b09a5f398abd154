"""Layers written down entry by entry, and the chunks of their files."""

from __future__ import annotations

from fastpull.cache.digest import ChunkId, chunk_id
from fastpull.image.layer_index import CHUNK_REF, Entry, EntryType, LayerIndex

CAPABILITY = (b"security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
CHUNK_BYTES = 4096 + 512  # no multiple of a block, so that chunks and blocks do not fall together


class Content:
    """Remembers every chunk that it cuts."""

    def __init__(self, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.chunks: dict[ChunkId, bytes] = {}
        self._chunk_bytes = chunk_bytes

    def refs(self, data: bytes) -> bytes:
        refs = []
        for start in range(0, len(data), self._chunk_bytes):
            piece = data[start : start + self._chunk_bytes]
            self.chunks[chunk_id(piece)] = piece
            refs.append(CHUNK_REF.pack(chunk_id(piece), len(piece)))
        return b"".join(refs)

    def file(self, path: bytes, data: bytes = b"", **meta: object) -> Entry:
        return Entry(path, EntryType.FILE, size=len(data), chunks=self.refs(data), **{"mode": 0o644, **meta})

    def of(self, entry: Entry) -> bytes:
        return b"".join(self.chunks[chunk] for chunk, _ in entry.chunk_refs())


def directory(path: bytes, **meta: object) -> Entry:
    return Entry(path, EntryType.DIRECTORY, **meta)


def symlink(path: bytes, link: bytes, **meta: object) -> Entry:
    return Entry(path, EntryType.SYMLINK, link=link, **{"mode": 0o777, **meta})


def hardlink(path: bytes, link: bytes, **meta: object) -> Entry:
    return Entry(path, EntryType.HARDLINK, link=link, **{"mode": 0o644, **meta})


def fifo(path: bytes, **meta: object) -> Entry:
    return Entry(path, EntryType.FIFO, **{"mode": 0o600, **meta})


def device(path: bytes, type_: EntryType, major: int, minor: int, **meta: object) -> Entry:
    return Entry(path, type_, major=major, minor=minor, **{"mode": 0o600, **meta})


def whiteout(path: bytes) -> Entry:
    return Entry(path, EntryType.WHITEOUT)


def opaque(path: bytes) -> Entry:
    return Entry(path, EntryType.OPAQUE)


def layer(*entries: Entry, number: int = 0) -> LayerIndex:
    return LayerIndex(f"sha256:{number:064x}", list(entries))


def layers(*contents: list[Entry]) -> list[LayerIndex]:
    return [layer(*entries, number=number) for number, entries in enumerate(contents)]
