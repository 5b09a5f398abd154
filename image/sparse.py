"""GNU sparse files: where a file's stored bytes belong, in all formats that GNU tar ever wrote. Pure.

A map is a list of ``(offset, length)``: the regions that the archive holds, everything else being zeros.

- Old GNU (type ``S``): four regions in the header, 21 in each extension block behind it.
- PAX 0.0 and 0.1: regions in PAX records. PAX 1.0: decimal lines in whole blocks before the content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from fastpull.image.errors import LayerFormatError
from fastpull.image.pax import MAX_EXTENSION_BYTES, SPARSE_BLOCKS, SPARSE_MAP, Records, parse_decimal
from fastpull.image.tar_header import BLOCK, parse_number

Region = tuple[int, int]

_MAX_REGIONS = 1 << 20
_MAX_OFFSET = 2**63 - 1
_IN_HEADER = 4
_IN_EXTENSION = 21
_REGION_BYTES = 24


def pax_version(records: Records) -> bytes:
    """``b"0"`` (0.0 and 0.1), ``b"1"`` or, for a file that is not sparse, ``b""``."""
    version = (records.get(b"GNU.sparse.major", b""), records.get(b"GNU.sparse.minor", b""))
    if version in ((b"0", b"0"), (b"0", b"1")):
        return b"0"
    if version == (b"1", b"0"):
        return b"1"
    if version == (b"", b"") and records.get(SPARSE_MAP):
        return b"0"  # the old versions carried no number
    return b""


def pax_size(records: Records) -> int | None:
    """The file's size, holes included; ``None`` = the header's."""
    text = records.get(b"GNU.sparse.size") or records.get(b"GNU.sparse.realsize")
    return parse_decimal(text) if text else None


def map_of_records(records: Records) -> list[Region]:
    """The map of PAX 0.1. Raise ``LayerFormatError``."""
    count = parse_decimal(records.get(SPARSE_BLOCKS, b""))
    text = records.get(SPARSE_MAP, b"")
    numbers = text.split(b",") if text else []
    if len(numbers) != 2 * count:
        raise LayerFormatError(f"a sparse map of {len(numbers)} numbers instead of {2 * count}")
    return _regions([parse_decimal(number) for number in numbers])


def read_map_of_content(next_block: Callable[[], bytes]) -> list[Region]:
    """The map of PAX 1.0, from the file's first blocks. Raise ``LayerFormatError``."""
    lines: list[bytes] = []
    rest = b""
    wanted, blocks = 1, 0
    while True:
        while len(lines) < wanted:
            blocks += 1
            if blocks * BLOCK > MAX_EXTENSION_BYTES:
                raise LayerFormatError(f"a sparse map of more than {MAX_EXTENSION_BYTES} bytes")
            *more, rest = (rest + next_block()).split(b"\n")
            lines += more
        if wanted > 1:
            return _regions([parse_decimal(line) for line in lines[1:wanted]])
        count = parse_decimal(lines[0])
        if not 0 <= count <= _MAX_REGIONS:
            raise LayerFormatError(f"a sparse map of {count} regions")
        wanted = 1 + 2 * count
        if not count:
            return []


def read_old_map(header: bytes, next_block: Callable[[], bytes]) -> tuple[list[Region], int]:
    """The map of an old GNU header and its extension blocks, and the file's size. Raise ``LayerFormatError``."""
    size = parse_number(header[483:495])
    regions: list[Region] = []
    table, count = header[386:483], _IN_HEADER
    read = len(table)
    while True:
        for at in range(0, count * _REGION_BYTES, _REGION_BYTES):
            if not table[at]:
                break
            offset, length = table[at : at + 12], table[at + 12 : at + 24]
            regions.append((parse_number(offset), parse_number(length)))
        if not table[count * _REGION_BYTES]:  # "is extended"
            return regions, size
        read += BLOCK
        if read >= MAX_EXTENSION_BYTES:
            raise LayerFormatError(f"a sparse map of more than {MAX_EXTENSION_BYTES} bytes")
        table, count = next_block(), _IN_EXTENSION


def runs(regions: list[Region], size: int, stored: int) -> Iterator[tuple[int, int]]:
    """``(zeros, data)``: so many zeros, then so many stored bytes, until the file of ``size`` is complete.

    Raise ``LayerFormatError`` at once for regions that overlap, leave the file, or do not add up to ``stored``.
    """
    end = 0
    for offset, length in regions:
        if length < 0 or not end <= offset <= _MAX_OFFSET - length or offset + length > size:
            raise LayerFormatError(f"sparse region {offset}+{length} in a file of {size} bytes after {end}")
        end = offset + length
    if sum(length for _, length in regions) != stored or size < 0:
        raise LayerFormatError(f"the sparse map does not describe the {stored} bytes that the archive holds")
    return _runs(regions, size)


def _runs(regions: list[Region], size: int) -> Iterator[tuple[int, int]]:
    end = 0
    for offset, length in regions:
        if length:
            yield offset - end, length
            end = offset + length
    if end < size:
        yield size - end, 0


def _regions(numbers: list[int]) -> list[Region]:
    if len(numbers) > 2 * _MAX_REGIONS:
        raise LayerFormatError(f"a sparse map of {len(numbers) // 2} regions")
    return list(zip(numbers[::2], numbers[1::2], strict=True))
