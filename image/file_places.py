"""From places on a chain's device back to files. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple, Self

from fastpull.image.erofs import layout
from fastpull.image.erofs.reader import Bootstrap


class FilePlace(NamedTuple):
    """Where a file's content stands, without the rest of its last block."""

    offset: int
    size: int
    path: bytes  # without a slash in front


class FilePlaces:
    """The files of a bootstrap by their place. Of paths with the same content the first counts."""

    def __init__(self, files: Iterable[FilePlace]) -> None:
        first: dict[int, FilePlace] = {}
        for file in files:
            first.setdefault(file.offset, file)
        self._files = sorted(first.values())
        self._offsets = [file.offset for file in self._files]

    @classmethod
    def of(cls, bootstrap: Bootstrap) -> Self:
        """Walks the whole tree: 0.3 s for 45,000 files. Raise ``IndexFormatError`` for a damaged one."""
        return cls(
            FilePlace(*bootstrap.content(inode), path)
            for path, inode in bootstrap.walk()
            if inode.is_file and inode.size
        )

    def at(self, offset: int) -> FilePlace | None:
        """The file whose content stands at ``offset``; the end of its last block is its own too."""
        index = bisect_right(self._offsets, offset) - 1
        if index < 0:
            return None
        file = self._files[index]
        end = file.offset + file.size
        return file if offset < end + -end % layout.BLOCK else None
