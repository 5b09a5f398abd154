"""A tar as a stream of events: headers, content, holes. Pure: pieces of the tar in, events out.

Accepts what Go's ``archive/tar`` accepts (``reader.go``), because that is what containerd unpacks with:
V7, ustar, PAX, old GNU and star headers, GNU long names, all sparse formats, PAX global headers (read and
ignored), base-256 numbers, a missing end-of-archive, missing padding behind the last member, anything behind
the end. What extended headers say is applied in Go's order: PAX records, then GNU long names, then the name
and size of a sparse file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fastpull.image import sparse
from fastpull.image.errors import LayerFormatError
from fastpull.image.pax import MAX_EXTENSION_BYTES, Records, apply_records, parse_records
from fastpull.image.tar_header import BLOCK, ZERO_BLOCK, TarHeader, is_gnu, parse_header

_HEADER_ONLY = frozenset(b"123456"[i : i + 1] for i in range(6))  # links, devices, directories, fifos
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK, _OLD_SPARSE = b"x", b"g", b"L", b"K", b"S"
_EXTENSIONS = frozenset((_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK))
_OLD_FILE, _FILE, _DIRECTORY = b"\0", b"0", b"5"


class Hole(NamedTuple):
    """So many zeros of a sparse file, which the archive does not hold."""

    size: int


Event = TarHeader | memoryview | Hole


def read_tar(pieces: Iterable[bytes]) -> Iterator[Event]:
    """Read a tar that arrives in ``pieces`` of any size.

    Yields a ``TarHeader`` for each member, behind it the member's content as views into the pieces and
    ``Hole`` until ``header.size`` bytes are complete; types without content have size 0. Takes all pieces,
    also those behind the archive's end. Raise ``LayerFormatError`` for bytes that are no tar, or a cut one.
    """
    return _Reader(pieces).events()


class _Reader:
    """Invariant: ``_piece[_at:]`` is what was received and not yet consumed; ``_view`` is a view of ``_piece``."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._piece = b""
        self._view = memoryview(b"")
        self._at = 0

    def events(self) -> Iterator[Event]:
        while (member := self._next_member()) is not None:
            header, block, records = member
            if header.flag == _OLD_SPARSE or (records and sparse.pax_version(records)):
                yield from self._sparse(header, block, records)
                continue
            yield header
            if size := header.size:
                at = self._at
                end = at + size
                if end <= len(self._piece):  # the usual file, without a generator of its own
                    self._at = end
                    yield self._view[at:end]
                else:
                    yield from self._content(size)
                if padding := -size % BLOCK:
                    self._skip_padding(padding)
        for _ in self._pieces:  # whoever hashes the tar wants all of it
            pass

    def _next_member(self) -> tuple[TarHeader, bytes, Records] | None:
        """The next member's header with its extensions applied, that header's block, and the PAX records."""
        records: Records = {}
        long_name = long_link = b""
        while True:
            block = self._next_header()
            if block is None:
                return None
            header = parse_header(block)
            flag = header.flag
            if flag not in _EXTENSIONS:
                break
            data = self._extension(header)
            if flag == _PAX:
                records = parse_records(data)
            elif flag == _LONG_NAME:
                long_name = data.partition(b"\0")[0]
            elif flag == _LONG_LINK:
                long_link = data.partition(b"\0")[0]
            else:
                parse_records(data)  # a broken one is refused; no reader of layers heeds what it says
                records, long_name, long_link = {}, b"", b""
        if flag not in _HEADER_ONLY and header.size < 0:
            raise LayerFormatError(f"{header.name!r} has a size of {header.size} bytes")
        if records:
            apply_records(header, records)
        header.name = long_name or header.name
        header.link = long_link or header.link
        if flag == _OLD_FILE:  # of V7, which marks directories by the name alone
            header.flag = flag = _DIRECTORY if header.name.endswith(b"/") else _FILE
        if flag in _HEADER_ONLY:
            header.size = 0
        elif header.size < 0:
            raise LayerFormatError(f"{header.name!r} has a size of {header.size} bytes")
        return header, block, records

    def _next_header(self) -> bytes | None:
        """The next block that is no end of the archive; ``None`` at that end."""
        block = self._block()
        if block == ZERO_BLOCK:
            if self._block() not in (b"", ZERO_BLOCK):
                raise LayerFormatError("broken tar: a single block of zeros between headers")
            return None
        return block or None

    def _block(self) -> bytes:
        """The next 512 bytes; empty at the end of the tar."""
        at = self._at
        block = self._piece[at : at + BLOCK]
        if len(block) == BLOCK:
            self._at = at + BLOCK
            return block
        block = b"".join(self._content(BLOCK, may_end=True))
        if block and len(block) < BLOCK:
            raise LayerFormatError(f"the tar is cut: {len(block)} bytes of a header")
        return block

    def _content(self, size: int, *, may_end: bool = False) -> Iterator[memoryview]:
        """The next ``size`` bytes as views. Raise ``LayerFormatError`` where the tar ends before (or not)."""
        while size:
            at = self._at
            view = self._view[at : at + size]
            if not view:
                piece = next(self._pieces, None)
                if piece is None:
                    if may_end:
                        return
                    raise LayerFormatError(f"the tar is cut: {size} bytes of a member are missing")
                self._piece, self._view, self._at = piece, memoryview(piece), 0
                continue
            self._at = at + len(view)
            size -= len(view)
            yield view

    def _skip_padding(self, padding: int) -> None:
        end = self._at + padding
        if end <= len(self._piece):
            self._at = end
        else:
            for _ in self._content(padding, may_end=True):
                pass

    def _extension(self, header: TarHeader) -> bytes:
        size = header.size
        if not 0 <= size <= MAX_EXTENSION_BYTES:
            raise LayerFormatError(f"an extended header of {size} bytes; readers take {MAX_EXTENSION_BYTES}")
        end = self._at + size
        if end <= len(self._piece):
            data = self._piece[self._at : end]
            self._at = end
        else:
            data = b"".join(self._content(size))
        self._skip_padding(-size % BLOCK)
        return data

    def _sparse(self, header: TarHeader, block: bytes, records: Records) -> Iterator[Event]:
        stored = header.size
        padding = -stored % BLOCK
        if header.flag in _HEADER_ONLY:
            raise LayerFormatError(f"{header.name!r} is sparse, but no file")
        if header.flag == _OLD_SPARSE:
            if not is_gnu(block):
                raise LayerFormatError(f"{header.name!r}: a sparse file of an unknown format")
            regions, header.size = sparse.read_old_map(block, self._map_block)
            header.flag = _FILE
        else:
            header.name = records.get(b"GNU.sparse.name") or header.name
            size = sparse.pax_size(records)
            header.size = header.size if size is None else size
            if sparse.pax_version(records) == b"0":
                regions = sparse.map_of_records(records)
            else:
                blocks = 0

                def next_block() -> bytes:
                    nonlocal blocks
                    blocks += 1
                    if blocks * BLOCK > stored:
                        raise LayerFormatError(f"{header.name!r}: its sparse map is longer than its content")
                    return self._map_block()

                regions = sparse.read_map_of_content(next_block)
                stored -= blocks * BLOCK
        runs = sparse.runs(regions, header.size, stored)
        yield header
        for zeros, data in runs:
            if zeros:
                yield Hole(zeros)
            yield from self._content(data)
        self._skip_padding(padding)

    def _map_block(self) -> bytes:
        return b"".join(self._content(BLOCK))
