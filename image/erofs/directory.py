"""The data of an EROFS directory: entries to blocks and back. The layout is in ``layout.py``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from fastpull.image.erofs import layout
from fastpull.image.errors import IndexFormatError

_ENTRY = layout.DIRENT.size


class DirectoryEntry(NamedTuple):
    """One name. ``type`` is one of ``layout.TYPE_…``."""

    name: bytes
    nid: int
    type: int


def split(names: Sequence[bytes]) -> tuple[list[int], int]:
    """Distribute sorted names over blocks: the index at which each block starts, and the last block's size."""
    total = _ENTRY * len(names) + sum(map(len, names))
    if total <= layout.BLOCK:  # nearly every directory
        return [0], total
    starts = [0]
    used = 0
    for index, name in enumerate(names):
        needed = _ENTRY + len(name)
        if used + needed > layout.BLOCK:
            starts.append(index)
            used = 0
        used += needed
    return starts, used


def pack_block(entries: Iterable[tuple[bytes, int, int]], count: int) -> bytes:
    """One block's ``count`` entries (name, node number, type), sorted by name, without padding."""
    name_offset = _ENTRY * count
    heads, names = [], []
    for name, nid, type_ in entries:
        heads.append(layout.DIRENT.pack(nid, name_offset, type_))
        names.append(name)
        name_offset += len(name)
    return b"".join(heads) + b"".join(names)


def unpack_block(block: bytes) -> Iterator[DirectoryEntry]:
    """The entries of one block (the last one cut to the directory's size), ``.`` and ``..`` included.

    Raise ``IndexFormatError`` for bytes that ``pack_block`` does not write.
    """
    names_offset, _ = name_range(block, 0)
    heads = list(layout.DIRENT.iter_unpack(block[:names_offset]))
    ends = [offset for _, offset, _ in heads[1:]]
    ends.append(name_range(block, len(heads) - 1)[1])
    for (nid, offset, type_), end in zip(heads, ends, strict=True):
        name = block[offset:end]
        if not names_offset <= offset < end <= offset + layout.MAX_NAME or len(name) != end - offset:
            raise IndexFormatError(f"directory entry whose name stands from {offset} to {end} of {len(block)}")
        if b"/" in name or b"\0" in name:
            raise IndexFormatError(f"directory entry with the name {name[:40]!r}")
        yield DirectoryEntry(name, nid, type_)


def name_range(block: bytes, index: int) -> tuple[int, int]:
    """Where the name of the block's entry ``index`` begins and ends. Raise ``IndexFormatError`` if nowhere."""
    if len(block) < _ENTRY:
        raise IndexFormatError(f"directory block of {len(block)} bytes")
    names_offset = layout.DIRENT.unpack_from(block)[1]
    if names_offset % _ENTRY or not (index + 1) * _ENTRY <= names_offset <= len(block):
        raise IndexFormatError(f"directory block whose names begin at {names_offset} of {len(block)}")
    offset = layout.DIRENT.unpack_from(block, index * _ENTRY)[1]
    if (index + 1) * _ENTRY < names_offset:
        end = layout.DIRENT.unpack_from(block, (index + 1) * _ENTRY)[1]
    else:
        end = block.find(0, offset)
        end = len(block) if end < 0 else end
    if not names_offset <= offset < end <= min(len(block), offset + layout.MAX_NAME):
        raise IndexFormatError(f"directory entry whose name stands from {offset} to {end} of {len(block)}")
    return offset, end


def find(block: bytes, name: bytes) -> DirectoryEntry | None:
    """The entry called ``name`` in one block, by bisection. Raise ``IndexFormatError`` as ``unpack_block``."""
    low, high = 0, name_range(block, 0)[0] // _ENTRY
    while low < high:
        middle = (low + high) // 2
        offset, end = name_range(block, middle)
        here = block[offset:end]
        if here == name:
            nid, _, type_ = layout.DIRENT.unpack_from(block, middle * _ENTRY)
            return DirectoryEntry(name, nid, type_)
        if here < name:
            low = middle + 1
        else:
            high = middle
    return None
