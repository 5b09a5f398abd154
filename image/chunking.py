"""Where files are cut into chunks. Pure.

Part of the format, version 1: the same file gives the same chunks in every layer, release and process, or
nothing is deduplicated. A change of any parameter costs every store its deduplication against older images.

    files of at most 16 KiB   one chunk
    larger files              FastCDC 2020 (the paper's default gear table, as in fastcdc-rs), normalised chunking
                              level 2, minimum 16 KiB, nominal 48 KiB, maximum 256 KiB: 62 KiB on average
    an empty file             no chunk

Cut points restart at each file: a file's chunks do not depend on its neighbours or on its place in the tar.

Why these: the share of new bytes in a new version, and the average chunk, of nvidia-cublas 12.6.3.3 → 12.6.4.1,
triton 3.3.0 → 3.3.1 and pyarrow 19.0.0 → 19.0.1 (``load_tests/dedup.py``). Half the size saves no more than a
point or two, and doubles what every index, lookup and request has to carry.

    nominal 64 KiB, level 1    14.7 %  80 KiB    52.5 %  84 KiB    57.3 %  59 KiB
    nominal 48 KiB, level 2    14.3 %  62 KiB    51.7 %  62 KiB    55.2 %  49 KiB
    nominal 32 KiB, level 1    13.9 %  40 KiB    51.3 %  42 KiB    54.2 %  36 KiB    (minimum 8 KiB)
"""

from __future__ import annotations

from collections.abc import Iterator

from pyfastcdc import FastCDC

from fastpull.cache.digest import ChunkId, chunk_id

VERSION = 1

MIN_BYTES = 16 << 10
NOMINAL_BYTES = 48 << 10
MAX_BYTES = 256 << 10

Buffer = bytes | memoryview
Chunk = tuple[ChunkId, Buffer]
"""A chunk's id and its content."""

_ZEROS = memoryview(bytes(MAX_BYTES))


class Chunker:
    """Cuts one file after the other; not safe for several threads.

    ``whole`` for a file that lies in one buffer, or ``feed`` and ``feed_zeros`` for its parts and then
    ``finish``. Chunks are views into the buffers given, but where one spans two of them. Holds at most
    ``MAX_BYTES`` of a file back.
    """

    def __init__(self) -> None:
        self._cutter = FastCDC(NOMINAL_BYTES, min_size=MIN_BYTES, max_size=MAX_BYTES, normalized_chunking=2)
        self._tail: Buffer = b""  # of the file, after the last cut that is certain
        self._zeros = self._cut(_ZEROS)[0]

    def whole(self, content: memoryview) -> list[Chunk]:
        """The chunks of a complete file."""
        if len(content) <= MIN_BYTES:
            return [(chunk_id(content), content)] if content else []
        return [_named(content) for content in self._cut(content)]

    def feed(self, content: memoryview) -> list[Chunk]:
        """The chunks that are certain now, whatever follows."""
        chunks: list[Chunk] = []
        at = 0
        while self._tail:
            # One buffer that holds the whole next chunk; it is cut from there, the rest of ``content`` in place.
            tail = len(self._tail)
            joined = b"".join((self._tail, content[at : at + MAX_BYTES - tail]))
            cut = len(self._cut_first(joined))
            if cut == len(joined) < MAX_BYTES:
                self._tail = joined
                return chunks
            chunks.append(_named(memoryview(joined)[:cut]))
            self._tail = joined[cut:tail]
            at += max(cut - tail, 0)
        rest = content[at:]
        if not rest:
            return chunks
        *certain, last = self._cut(rest)
        # A cut at the end of the buffer is the buffer's end, not the content's doing, but at the maximum.
        if len(last) == MAX_BYTES:
            certain.append(last)
        else:
            self._tail = last
        chunks += [_named(data) for data in certain]
        return chunks

    def feed_zeros(self, size: int) -> Iterator[Chunk]:
        """The same for ``size`` zeros, without looking at all of them."""
        while self._tail and size:
            step = min(size, MAX_BYTES)
            yield from self.feed(_ZEROS[:step])
            size -= step
            if len(self._tail) <= step:  # nothing but zeros is pending: take them back
                size += len(self._tail)
                self._tail = b""
                break
        if size >= MAX_BYTES:
            zeros = _named(self._zeros)
            while size >= MAX_BYTES:
                yield zeros
                size -= len(self._zeros)
        if size:
            yield from self.feed(_ZEROS[:size])

    def finish(self) -> list[Chunk]:
        """The rest of the file; then the next file may begin."""
        tail, self._tail = self._tail, b""
        return [_named(tail)] if tail else []

    def _cut(self, content: Buffer) -> list[memoryview]:
        return [chunk.data for chunk in self._cutter.cut_buf(content)]

    def _cut_first(self, content: Buffer) -> memoryview:
        return next(iter(self._cutter.cut_buf(content))).data


def _named(content: Buffer) -> Chunk:
    return chunk_id(content), content
