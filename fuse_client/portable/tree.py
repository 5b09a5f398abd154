"""A bootstrap as a file system: inode numbers, listings that can be resumed, what statfs shows. Pure.

Inode numbers are EROFS' node numbers, so that nothing has to be remembered of what the kernel was told, and a
hardlinked file is one inode by itself. Only the root is 1, as FUSE wants it. Node numbers begin at 40, where
``image/erofs/layout.py`` puts the first inode, so that 1 is free.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from fastpull.image.erofs import layout
from fastpull.image.erofs.reader import Bootstrap, Extent, Inode

ROOT = 1

# A position in a directory: the number of a block, and of an entry in it. It means the same for ever.
_PLACE_BITS = 16  # a block of 4096 bytes holds less than 2**16 entries

END = 2**31 - 1
"""The position behind the last entry, so that nobody has to look there. No entry's own: no block has that many; and no
larger than 32-bit programs can take."""


def position_of(block: int, place: int) -> int:
    return (block << _PLACE_BITS) + place


def place_at(position: int) -> tuple[int, int]:
    """Block, and place in it. The first position is 0."""
    return position >> _PLACE_BITS, position & ((1 << _PLACE_BITS) - 1)


class FileSystemFigures(NamedTuple):
    """What ``statfs`` tells: blocks of ``block_bytes``, and how many files there are. All are taken."""

    block_bytes: int
    blocks: int
    files: int
    name_max: int


class Tree:
    """Answers what system calls ask of one chain. Raises ``IndexFormatError`` for a damaged bootstrap."""

    def __init__(self, bootstrap: Bootstrap) -> None:
        self._bootstrap = bootstrap
        self._root = bootstrap.root

    def inode(self, number: int) -> Inode:
        return self._bootstrap.inode(self._root if number == ROOT else number)

    def inodes(self) -> Iterator[Inode]:
        """Each that has a name, as often as it has names."""
        return (inode for _, inode in self._bootstrap.walk())

    def number(self, inode: Inode) -> int:
        """The inode number by which FUSE knows it."""
        return ROOT if inode.nid == self._root else inode.nid

    def child(self, parent: int, name: bytes) -> Inode | None:
        """The inode called ``name``; ``.`` is the inode itself, also of a file (as NFS servers ask)."""
        inode = self.inode(parent)
        return inode if name == b"." else self._bootstrap.child(inode, name)

    def entries(self, directory: int, block: int) -> list[tuple[bytes, Inode]]:
        """Name and inode of each entry in one block of a directory, ``.`` and ``..`` included, as EROFS has
        them. Behind the last block there are none.
        """
        inode = self._bootstrap.inode
        return [(entry.name, inode(entry.nid)) for entry in self._bootstrap.entries(self.inode(directory), block)]

    def is_last(self, directory: int, block: int) -> bool:
        """Whether nothing comes behind that block of a directory."""
        return (block + 1) * layout.BLOCK >= self.inode(directory).size

    def readlink(self, number: int) -> bytes:
        return self._bootstrap.readlink(self.inode(number))

    def xattrs(self, number: int) -> dict[bytes, bytes]:
        return self._bootstrap.xattrs(self.inode(number))

    def content(self, number: int) -> Extent:
        """Where a file's bytes stand on the device."""
        return self._bootstrap.content(self.inode(number))

    def figures(self) -> FileSystemFigures:
        blocks = self._bootstrap.blocks + self._bootstrap.device_bytes // layout.BLOCK
        return FileSystemFigures(layout.BLOCK, blocks, self._bootstrap.inodes, layout.MAX_NAME)
