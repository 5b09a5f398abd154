"""What we say to the kernel's FUSE: the answers to the requests of ``protocol.py``. Pure.

Source: ``include/uapi/linux/fuse.h`` of Linux. Every answer starts with (``fuse_out_header``, little-endian):

    offset  size  type  field
    0       4     u32   length of the whole answer
    4       4     i32   0, or a negative errno (then nothing follows); of a notification: its code
    8       8     u64   unique of the request, as received; 0 = a notification
"""

from __future__ import annotations

import enum
import mmap
import stat
import struct
from collections.abc import Iterable

import msgspec

from fastpull.fuse_client.session.errors import FuseVersionError
from fastpull.fuse_client.session.protocol import MAX_READ, MAX_WRITE, NAME_MAX, Init, InitFlag

_MAJOR = 7
_OLDEST_MINOR = 28  # FUSE_MAX_PAGES, Linux 4.20
_NEWEST_MINOR = 45
# Reads of EROFS (directio) and readahead count as background requests. The kernel's default of 12 in flight
# would make a few misses block every other reader.
_MAX_BACKGROUND = 512
_CONGESTION_THRESHOLD = 384

_OUT_HEADER = struct.Struct("<IiQ")
# major, minor, max_readahead, flags, max_background u16, congestion_threshold u16, max_write, time_gran,
# max_pages u16, map_alignment u16, flags2, then 28 bytes that are zero for us
_INIT_OUT = struct.Struct("<IIIIHHIIHHI28x")
# ino, size, blocks, atime, mtime, ctime, atimensec, mtimensec, ctimensec, mode, nlink, uid, gid, rdev, blksize, flags
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
# nodeid, generation, entry_valid s, attr_valid s, entry_valid ns, attr_valid ns
_ENTRY_OUT = struct.Struct("<QQQQII")
_ATTR_OUT = struct.Struct("<QII")  # attr_valid s, ns, padding
_OPEN_OUT = struct.Struct("<QIi")  # fh, open_flags, backing_id
_STATFS_OUT = struct.Struct("<QQQQQIIII24x")  # blocks, bfree, bavail, files, ffree, bsize, namelen, frsize, padding
_DIRENT = struct.Struct("<QQII")  # ino, offset of the next entry, namelen, type; then the name, padded to 8

OUT_HEADER_BYTES = _OUT_HEADER.size

_NOTIFY_RESEND = 7


class OpenFlag(enum.IntFlag):
    """``FOPEN_*`` flags of an answer to OPEN."""

    DIRECT_IO = 1 << 0  # past the page cache


_WANTED = (
    InitFlag.ASYNC_READ
    | InitFlag.ASYNC_DIO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
    | InitFlag.EXPLICIT_INVAL_DATA
    | InitFlag.INIT_EXT
    | InitFlag.HAS_RESEND
)


class Attributes(msgspec.Struct, frozen=True):
    """What ``stat`` shows of a file or directory here."""

    ino: int
    mode: int
    size: int
    links: int = 1


def answer_header(unique: int, body_bytes: int) -> bytes:
    """What stands before the ``body_bytes`` of a successful answer."""
    return _OUT_HEADER.pack(OUT_HEADER_BYTES + body_bytes, 0, unique)


def answer(unique: int, body: bytes = b"") -> bytes:
    return answer_header(unique, len(body)) + body


def error_answer(unique: int, code: int) -> bytes:
    """``code`` is a positive errno."""
    return _OUT_HEADER.pack(OUT_HEADER_BYTES, -code, unique)


def resend_notice() -> bytes:
    """FUSE_NOTIFY_RESEND: every request that was read and never answered is queued again.

    Linux 6.9 and newer; older kernels refuse the write with EINVAL.
    """
    return _OUT_HEADER.pack(OUT_HEADER_BYTES, _NOTIFY_RESEND, 0)


class Agreement(msgspec.Struct, frozen=True):
    """What INIT settled for the life of the mount."""

    minor: int
    flags: int

    @property
    def can_resend(self) -> bool:
        return bool(self.flags & InitFlag.HAS_RESEND)


def agree(request: Init) -> tuple[Agreement, bytes]:
    """What to use with this kernel, and the answer that says so. Raise ``FuseVersionError``."""
    if request.major != _MAJOR or request.minor < _OLDEST_MINOR:
        raise FuseVersionError(request.major, request.minor, f"{_MAJOR}.{_OLDEST_MINOR} or newer")
    agreement = Agreement(min(request.minor, _NEWEST_MINOR), request.flags & _WANTED)
    body = _INIT_OUT.pack(
        _MAJOR,
        agreement.minor,
        max(request.max_readahead, MAX_READ),
        agreement.flags & 0xFFFFFFFF,
        _MAX_BACKGROUND,
        _CONGESTION_THRESHOLD,
        MAX_WRITE,
        1,  # time granularity, ns
        MAX_READ // mmap.PAGESIZE,
        0,
        agreement.flags >> 32,
    )
    return agreement, answer(request.unique, body)


def _attr(attributes: Attributes) -> bytes:
    return _ATTR.pack(
        attributes.ino,
        attributes.size,
        (attributes.size + 511) // 512,
        0,
        0,
        0,
        0,
        0,
        0,
        attributes.mode,
        attributes.links,
        0,
        0,
        0,
        MAX_READ,  # st_blksize: what cp and dd read at a time
        0,
    )


def entry_body(attributes: Attributes, *, attr_valid_seconds: int) -> bytes:
    """LOOKUP: the node id is the inode number. The name itself is asked for anew each time (validity 0),
    so that a device can be removed and added again without telling the kernel."""
    return _ENTRY_OUT.pack(attributes.ino, 0, 0, attr_valid_seconds, 0, 0) + _attr(attributes)


def attr_body(attributes: Attributes, *, attr_valid_seconds: int) -> bytes:
    """GETATTR."""
    return _ATTR_OUT.pack(attr_valid_seconds, 0, 0) + _attr(attributes)


def open_body(flags: OpenFlag) -> bytes:
    """OPEN, OPENDIR: no handle, because one would not survive the daemon."""
    return _OPEN_OUT.pack(0, flags, 0)


def statfs_body(*, total_bytes: int, files: int) -> bytes:
    """STATFS."""
    return _STATFS_OUT.pack((total_bytes + 4095) // 4096, 0, 0, files, 0, 4096, NAME_MAX, 4096, 0)


class DirEntry(msgspec.Struct, frozen=True, gc=False):
    """``cookie`` is where a listing goes on after this entry."""

    ino: int
    name: bytes
    mode: int
    cookie: int


def readdir_body(entries: Iterable[DirEntry], limit: int) -> bytes:
    """READDIR: as many whole entries as fit in ``limit`` bytes."""
    body = bytearray()
    for entry in entries:
        room = -(-(_DIRENT.size + len(entry.name)) // 8) * 8
        if len(body) + room > limit:
            break
        packed = _DIRENT.pack(entry.ino, entry.cookie, len(entry.name), stat.S_IFMT(entry.mode) >> 12) + entry.name
        body += packed.ljust(room, b"\0")
    return bytes(body)
