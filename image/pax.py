"""PAX extended headers: ``"<length> <key>=<value>\\n"``, record after record. Pure.

POSIX.1-2001, pax, "pax Extended Header"; where that leaves room, as Go's ``archive/tar`` reads them.
"""

from __future__ import annotations

import re
from functools import lru_cache

from fastpull.image.errors import LayerFormatError
from fastpull.image.tar_header import TarHeader

MAX_EXTENSION_BYTES = 1 << 20  # of one extended header or long name; the limit of Go and libarchive

SPARSE_MAP = b"GNU.sparse.map"
SPARSE_BLOCKS = b"GNU.sparse.numblocks"

_XATTR = b"SCHILY.xattr."
_SPARSE_OFFSET = b"GNU.sparse.offset"
_SPARSE_BYTES = b"GNU.sparse.numbytes"
_STRINGS = frozenset((b"path", b"linkpath", b"uname", b"gname"))
_INT64 = range(-(2**63), 2**63)
_LENGTHS = [b"%d" % length for length in range(512)]
_TIMES = re.compile(
    rb"(\d\d) mtime=(\d{1,10}(?:\.\d{1,9})?)\n"
    rb"(?:(\d\d) atime=\d{1,10}(?:\.\d{1,9})?\n(\d\d) ctime=\d{1,10}(?:\.\d{1,9})?\n)?"
)

Records = dict[bytes, bytes]


def parse_records(data: bytes) -> Records:
    """Raise ``LayerFormatError`` for bytes that are no PAX records.

    A key given twice counts as given last. The sparse map of GNU format 0.0, one record for each number, is
    returned as that of format 0.1: all numbers under ``GNU.sparse.map``. Where valid ``atime`` and ``ctime`` are all
    there is besides an ``mtime``, they are left out.
    """
    records = _usual_times(data) or _plain_records(data)
    return _parse_records(data) if records is None else records


def _usual_times(data: bytes) -> Records | None:
    """The mtime if ``data`` is nothing but the usual times, and they are right.

    GNU tar in PAX format writes such a header before every member, BuildKit before every file: to look at it as a
    whole halves what it costs.
    """
    match = _TIMES.fullmatch(data)
    if match is None:
        return None
    length, mtime, atime_length, ctime_length = match.groups()
    if atime_length is None:
        return {b"mtime": mtime} if length == _LENGTHS[len(data)] else None
    atime, ctime = match.start(3), match.start(4)
    lengths = (_LENGTHS[atime], _LENGTHS[ctime - atime], _LENGTHS[len(data) - ctime])
    return {b"mtime": mtime} if (length, atime_length, ctime_length) == lengths else None


def _plain_records(data: bytes) -> Records | None:
    """The records if each is a line of its own and nothing about them is odd: a third of the time."""
    if b"\0" in data or b"GNU.sparse" in data or not data.endswith(b"\n"):
        return None
    records: Records = {}
    for line in data[:-1].split(b"\n"):
        length, _, record = line.partition(b" ")
        key, equals, value = record.partition(b"=")
        if len(line) > 510 or length != _LENGTHS[len(line) + 1] or not equals or not key:
            return None
        records[key] = value
    return records


def _parse_records(data: bytes) -> Records:
    records: Records = {}
    sparse: list[bytes] = []
    at = 0
    while at < len(data):
        blank = data.find(b" ", at)
        if blank < 0:
            raise LayerFormatError("PAX record without a length")
        end = at + parse_decimal(data[at:blank])
        key, equals, value = data[blank + 1 : end - 1].partition(b"=")
        if not blank + 1 < end <= len(data) or end - at < 5 or data[end - 1] != 0x0A or not equals or not key:
            raise LayerFormatError(f"broken PAX record {data[at : at + 40]!r}")
        if b"\0" in (value if key in _STRINGS else key):
            raise LayerFormatError(f"PAX record {key[:40]!r} holds a NUL byte")
        if key in (_SPARSE_OFFSET, _SPARSE_BYTES):
            if key != (_SPARSE_BYTES if len(sparse) % 2 else _SPARSE_OFFSET) or b"," in value:
                raise LayerFormatError("the sparse map in the PAX header is out of order")
            sparse.append(value)
        else:
            records[key] = value
        at = end
    if sparse:
        records[SPARSE_MAP] = b",".join(sparse)
    return records


def apply_records(header: TarHeader, records: Records) -> None:
    """Let ``records`` override the fields of ``header``; an empty value overrides nothing but an xattr."""
    xattrs = []
    for key, value in records.items():
        if key.startswith(_XATTR):
            xattrs.append((key[len(_XATTR) :], value))
        elif not value:
            continue
        elif key in (b"atime", b"ctime"):
            parse_time(value)  # not kept, but a reader that checks them refuses the layer
        elif key == b"mtime":
            header.mtime_ns = parse_time(value)
        elif key == b"path":
            header.name = value
        elif key == b"linkpath":
            header.link = value
        elif key == b"size":
            header.size = parse_decimal(value)
        elif key == b"uid":
            header.uid = parse_decimal(value)
        elif key == b"gid":
            header.gid = parse_decimal(value)
    if xattrs:
        header.xattrs = tuple(sorted(xattrs))


def parse_decimal(text: bytes) -> int:
    """A decimal number of 64 bits with an optional sign. Raise ``LayerFormatError``."""
    digits = text[1:] if text[:1] in (b"+", b"-") else text
    if digits.isdigit() and len(digits) < 1000 and (value := int(text)) in _INT64:  # int() takes 4300 digits
        return value
    raise LayerFormatError(f"{text[:40]!r} is no decimal number of 64 bits")


@lru_cache(maxsize=256)  # atime and ctime of a member are often its mtime, and so are its neighbours'
def parse_time(text: bytes) -> int:
    """``seconds[.fraction]`` → nanoseconds since the epoch; digits after the ninth do not count."""
    seconds, _, fraction = text.partition(b".")
    if fraction and not fraction.isdigit():
        raise LayerFormatError(f"{text[:40]!r} is no time")
    nanoseconds = int(fraction[:9].ljust(9, b"0")) if fraction else 0
    return parse_decimal(seconds) * 1_000_000_000 + (-nanoseconds if seconds.startswith(b"-") else nanoseconds)
