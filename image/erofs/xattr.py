"""Xattrs behind an EROFS inode: bytes and back. The layout is in ``layout.py``."""

from __future__ import annotations

from fastpull.image.erofs import layout
from fastpull.image.errors import IndexFormatError, LimitExceededError
from fastpull.image.node import Xattrs

_PREFIX_OF = {number: prefix for prefix, number in layout.XATTR_PREFIXES.items()}


def pack(xattrs: Xattrs) -> bytes:
    """What follows the inode; empty for no xattrs.

    Raise ``LimitExceededError`` for a value, or for all xattrs of a file together, that the format can not hold.
    """
    if not xattrs:
        return b""
    packed = bytearray(layout.XATTR_HEADER.pack(0, 0))
    for name, value in xattrs:
        number, rest = _split(name)
        if len(value) > layout.MAX_XATTR_VALUE or len(rest) > layout.MAX_NAME:
            raise LimitExceededError(
                f"xattr {name[:40]!r} with a name of {len(name)} and a value of {len(value)} bytes; "
                f"{layout.MAX_NAME} and {layout.MAX_XATTR_VALUE} fit"
            )
        packed += layout.XATTR_ENTRY.pack(len(rest), number, len(value)) + rest + value
        packed += bytes(-len(packed) % 4)
    if len(packed) > layout.MAX_XATTR_BYTES:
        raise LimitExceededError(f"the xattrs of one file take {len(packed)} bytes; {layout.MAX_XATTR_BYTES} fit")
    return bytes(packed)


def unpack(packed: bytes) -> dict[bytes, bytes]:
    """Names and values. Raise ``IndexFormatError`` for bytes that ``pack`` does not write."""
    xattrs: dict[bytes, bytes] = {}
    if not packed:
        return xattrs
    if len(packed) <= layout.XATTR_HEADER.size or layout.XATTR_HEADER.unpack_from(packed)[1]:
        raise IndexFormatError(f"xattrs of {len(packed)} bytes that are empty or shared")
    position = layout.XATTR_HEADER.size
    while position < len(packed):
        # Sizes are multiples of 4, so that an entry's header is always complete.
        name_length, number, value_length = layout.XATTR_ENTRY.unpack_from(packed, position)
        name_start = position + layout.XATTR_ENTRY.size
        value_start = name_start + name_length
        end = value_start + value_length
        if end > len(packed) or number not in _PREFIX_OF:
            raise IndexFormatError(f"xattr entry with prefix {number} that ends at {end} of {len(packed)} bytes")
        name = _PREFIX_OF[number] + packed[name_start:value_start]
        xattrs[name] = packed[value_start:end]
        position = end + -end % 4
    return xattrs


def _split(name: bytes) -> tuple[int, bytes]:
    for prefix, number in layout.XATTR_PREFIXES.items():
        if name.startswith(prefix) and (prefix.endswith(b".") or name == prefix):
            return number, name[len(prefix) :]
    raise LimitExceededError(f"xattr {name[:40]!r} is of a namespace that EROFS does not know")
