"""From places on a chain's device back to paths. Pure."""

from __future__ import annotations

import os
from bisect import bisect_right

from fastpull.image.erofs.reader import Bootstrap

UNKNOWN = "(unknown)"


class Places:
    """The files of a bootstrap by their place. Of paths with the same content the first counts."""

    def __init__(self, files: dict[int, tuple[int, str]]) -> None:
        """``files``: offset on the device → size and path."""
        self._offsets = sorted(files)
        self._files = [files[offset] for offset in self._offsets]

    @classmethod
    def of(cls, bootstrap: Bootstrap) -> Places:
        """Walks the whole tree: 0.3 s for 45,000 files. Raise ``IndexFormatError`` for a damaged one."""
        files: dict[int, tuple[int, str]] = {}
        for path, inode in bootstrap.walk():
            if inode.is_file and inode.size:
                extent = bootstrap.content(inode)
                # Names that are no UTF-8 can not stand in JSON: their bytes as \\xNN.
                name = "/" + os.fsencode(path).decode("utf-8", "backslashreplace")
                files.setdefault(extent.offset, (extent.size, name))
        return cls(files)

    def path(self, offset: int) -> str:
        """The file whose content stands at ``offset``; the end of its last block is its own too."""
        at = bisect_right(self._offsets, offset) - 1
        if at < 0 or offset >= self._offsets[at] + -(-self._files[at][0] // 4096) * 4096:
            return UNKNOWN
        return self._files[at][1]
