"""Memory for bytes on their way from the disk to a reader, used again and again.

A new buffer of 512 KiB costs 128 page faults, some 50 us, as much as the copy into it. And these pages are present: a
process that is killed while the kernel copies out of them does not cut an answer in two, as it would out of pages of
a mapped file, which a dying process can not fault in any more. A buffer begins with a page, so that the kernel can
copy page by page.
"""

from __future__ import annotations

import mmap

_SPARE = 4  # buffers kept; one for each thread that reads at the same time
_BYTES = 2 << 20  # the longest read, and a chunk that begins before it and one that ends behind it


class Scratch:
    """Lends buffers to any number of threads."""

    def __init__(self) -> None:
        self._spare: list[memoryview] = []

    def take(self, length: int) -> memoryview:
        """At least ``length`` bytes of anything."""
        if length > _BYTES:
            return memoryview(mmap.mmap(-1, length))
        try:
            return self._spare.pop()
        except IndexError:
            return memoryview(mmap.mmap(-1, _BYTES))

    def give_back(self, buffer: memoryview) -> None:
        if len(buffer) == _BYTES and len(self._spare) < _SPARE:
            self._spare.append(buffer)
