"""gzip, member after member, to what it holds (RFC 1952). Pure.

The members' headers are read here and only the deflate streams and their trailers (CRC-32 and length, both
checked) are left to ISA-L: its own header parser fails for a header with optional fields that is split
between two inputs (isal 1.7 to 1.9).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from isal import igzip_lib

from fastpull.image.errors import LayerFormatError
from fastpull.image.piece_reader import PieceReader

MAGIC = b"\x1f\x8b\x08"

_HEADER_BYTES = 10
_HEADER_CRC, _EXTRA, _NAME, _COMMENT, _RESERVED = 2, 4, 8, 16, 0xE0
_MAX_TEXT_BYTES = 64 << 10

# What is left of a step at the end of a member is copied, so small steps first: in an eStargz layer each
# small file is a member.
_FIRST_STEP = 16 << 10
_LAST_STEP = 256 << 10


def decompress_gzip(pieces: Iterable[bytes], piece_bytes: int) -> Iterator[bytes]:
    """Yield 1 to ``piece_bytes`` bytes at a time. Raise ``LayerFormatError`` for a broken or cut stream, and for
    anything but members in it.
    """
    stream = PieceReader(pieces)
    while True:
        _read_header(stream)
        yield from _inflate(stream, piece_bytes)
        if not stream.rest():
            return


def _read_header(stream: PieceReader) -> None:
    header = _take(stream, _HEADER_BYTES)
    flags = header[3]
    if not header.startswith(MAGIC) or flags & _RESERVED:
        raise LayerFormatError(f"broken gzip stream: a member starts with {header.hex()}")
    if flags & _EXTRA:
        _take(stream, int.from_bytes(_take(stream, 2), "little"))
    for text in (_NAME, _COMMENT):
        if flags & text:
            _skip_text(stream)
    if flags & _HEADER_CRC:
        _take(stream, 2)


def _skip_text(stream: PieceReader) -> None:
    skipped = 0
    while skipped <= _MAX_TEXT_BYTES:
        part = bytes(stream.rest()[: _MAX_TEXT_BYTES + 1])
        if not part:
            raise LayerFormatError("the gzip stream is cut in a member's header")
        end = part.find(b"\0")
        stream.consume(end + 1 if end >= 0 else len(part))
        if end >= 0:
            return
        skipped += len(part)
    raise LayerFormatError(f"a name of more than {_MAX_TEXT_BYTES} bytes in a gzip header")


def _inflate(stream: PieceReader, piece_bytes: int) -> Iterator[bytes]:
    member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP_NO_HDR_VER)
    step = _FIRST_STEP
    while not member.eof:
        data: bytes | memoryview = b""
        if member.needs_input:
            data = stream.rest()[:step]
            if not data:
                raise LayerFormatError("the gzip stream is cut")
            stream.consume(len(data))
            step = min(step * 2, _LAST_STEP)
        try:
            output = member.decompress(data, piece_bytes)
        except igzip_lib.IsalError as exc:  # type: ignore[misc]  # the stub takes the class for an instance
            raise LayerFormatError(f"broken gzip stream: {exc}") from exc
        if output:
            yield output
    if member.unused_data:
        stream.put_back(member.unused_data)


def _take(stream: PieceReader, size: int) -> bytes:
    data = stream.take(size)
    if len(data) < size:
        raise LayerFormatError("the gzip stream is cut in a member's header")
    return data
