"""One 512-byte tar header → its fields, as Go's ``archive/tar`` reads them (``reader.go``, ``strconv.go``). Pure.

Formats: the original V7, POSIX ustar (also under PAX), old GNU, and star. Field offsets:

    0    100  name           148  8    checksum     329  8    device major
    100  8    mode           156  1    type flag    337  8    device minor
    108  8    uid            157  100  link name    345  155  name prefix (ustar)
    116  8    gid            257  8    magic        345  131  name prefix (star)
    124  12   size           265  32   user name    345  12   atime (old GNU)
    136  12   mtime          297  32   group name   357  12   ctime (old GNU)
"""

from __future__ import annotations

import struct
from functools import lru_cache
from zlib import adler32

import msgspec

from fastpull.image.errors import LayerFormatError

BLOCK = 512
ZERO_BLOCK = bytes(BLOCK)

_FIELDS = struct.Struct("100s24s12s12s8sc100s255s")
_REST = struct.Struct("8s64x16s155s12s")
_CHECKSUM = slice(148, 156)
_USTAR = b"ustar\0"
_GNU = b"ustar  \0"
_STAR_TRAILER = b"tar\0"
_ADLER_BASE = 65521
_MAX_INT64 = 2**63 - 1


class TarHeader(msgspec.Struct, gc=False):
    """A member of a tar, with everything that extended headers said about it."""

    name: bytes  # verbatim: may have a leading ``./`` or ``/``, a trailing ``/``, ``..``
    flag: bytes  # one byte
    mode: int
    uid: int
    gid: int
    size: int  # bytes of content; of a sparse file: holes included
    mtime_ns: int
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


def parse_header(block: bytes) -> TarHeader:
    """Raise ``LayerFormatError`` for a block that is no tar header."""
    name, owner, size, mtime, checksum, flag, link, rest = _FIELDS.unpack(block)
    if adler32(block) & 0xFFFF != _sum_of_valid(checksum):
        _check_signed(block, parse_octal(checksum))
    mode, uid, gid = _mode_and_owner(owner)
    header = TarHeader(
        name.partition(b"\0")[0],
        flag,
        mode,
        uid,
        gid,
        _size(size),
        _time(mtime) * 1_000_000_000,
    )
    if link[0]:
        header.link = link.partition(b"\0")[0]
    device, prefix = _device_and_prefix(rest)
    if device is not None:
        header.major, header.minor = device
    if prefix:
        header.name = prefix + header.name
    return header


def parse_number(field: bytes) -> int:
    """A numeric field: octal text or, with the first bit set, base-256 two's complement.

    Blanks and NULs around octal digits do not count; an empty field is 0. Raise ``LayerFormatError``.
    """
    if not field[0] & 0x80:
        return parse_octal(field)
    bits = 8 * len(field) - 1  # the first bit only says that this is base-256
    value = int.from_bytes(field, "big") & ((1 << bits) - 1)
    if field[0] & 0x40:
        value -= 1 << bits
    if not -_MAX_INT64 - 1 <= value <= _MAX_INT64:
        raise LayerFormatError(f"tar header field {field!r} exceeds 64 bits")
    return value


def parse_octal(field: bytes) -> int:
    """Octal text. Raise ``LayerFormatError`` for anything else."""
    digits = field.strip(b" \0").partition(b"\0")[0]
    if not digits:
        return 0
    # int() would also take signs, blanks, underscores and a 0o prefix.
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise LayerFormatError(f"tar header field {field!r} is no octal number")
    return int(digits, 8)


# The members of a layer resemble each other: a remembered field takes 50 ns, a parsed one 300.


def _size(field: bytes) -> int:
    digits = field[:11]  # sizes differ, so they are parsed; nearly always the field looks like this
    if digits.isdigit() and field[11] in b"\0 ":
        try:
            return int(digits, 8)
        except ValueError:
            pass
    return parse_number(field)


@lru_cache(maxsize=1024)
def _mode_and_owner(fields: bytes) -> tuple[int, int, int]:
    return parse_number(fields[:8]), parse_number(fields[8:16]), parse_number(fields[16:])


@lru_cache(maxsize=1024)
def _device_and_prefix(rest: bytes) -> tuple[tuple[int, int] | None, bytes]:
    """Of everything from the magic on: the device number unless it is 0, and what goes before the name."""
    magic, device, prefix, tail = _REST.unpack(rest)
    if magic[:6] == _USTAR:
        if tail[8:] == _STAR_TRAILER:
            parse_number(prefix[131:143])  # atime and ctime: not kept, but broken ones make the header invalid
            parse_number(prefix[143:])
            prefix = prefix[:131]
    elif magic != _GNU:
        return None, b""
    elif prefix[0] or prefix[12]:
        prefix = _mistaken_prefix(prefix)
    else:
        prefix = ZERO_BLOCK
    numbers = parse_number(device[:8]), parse_number(device[8:])
    return numbers if any(numbers) else None, prefix.partition(b"\0")[0] + b"/" if prefix[0] else b""


@lru_cache(maxsize=1024)
def _time(field: bytes) -> int:
    return parse_number(field)


@lru_cache(maxsize=8192)
def _sum_of_valid(checksum: bytes) -> int:
    """The lower half of a header's Adler-32 if ``checksum`` is right: 1 + the sum of all bytes, modulo 65521.

    Adler-32 sums ten times faster than ``sum``. Two sums that differ by 65521 are not told apart; the layer's
    digest tells them.
    """
    return (1 + parse_octal(checksum) - 8 * ord(" ") + sum(checksum)) % _ADLER_BASE


def is_gnu(block: bytes) -> bool:
    """Whether the old GNU format's fields (its sparse map) are valid in this header."""
    return block[257:265] == _GNU


def _check_signed(block: bytes, given: int) -> None:
    """Sun's tar summed signed bytes; both sums are valid. Raise ``LayerFormatError`` for neither."""
    rest = block[: _CHECKSUM.start] + block[_CHECKSUM.stop :]
    unsigned = sum(rest) + 8 * ord(" ")
    if given not in (unsigned, unsigned - 256 * sum(byte >= 0x80 for byte in rest)):
        raise LayerFormatError(f"no tar header: its checksum is {given}, its bytes sum up to {unsigned}")


def _mistaken_prefix(prefix: bytes) -> bytes:
    """The name prefix that Go before 1.8 wrote over the times of a GNU header (golang.org/issue/12594).

    Valid times are no prefix; neither is text outside ASCII.
    """
    try:
        for field in (prefix[:12], prefix[12:24]):
            if field[0]:
                parse_number(field)
    except LayerFormatError:
        text = prefix.partition(b"\0")[0]
        return text + b"\0" if text.isascii() else ZERO_BLOCK
    return ZERO_BLOCK
