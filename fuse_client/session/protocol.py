"""The kernel's FUSE protocol, as far as a directory of read-only files needs it. Pure.

Source: ``include/uapi/linux/fuse.h`` of Linux, protocol 7.28 to 7.45, little-endian 64-bit. Every request
starts with (``fuse_in_header``):

    offset  size  type  field
    0       4     u32   length of the whole request
    4       4     u32   opcode
    8       8     u64   unique; bit 63 = sent again after FUSE_NOTIFY_RESEND. The answer repeats it as it is
    16      8     u64   node id
    24      4     u32   uid of the caller
    28      4     u32   gid
    32      4     u32   pid
    36      2     u16   length of extensions, in units of 8 bytes (at the end of the request)
    38      2     u16   padding

Answers: ``answers.py``.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable

import msgspec

from fastpull.fuse_client.session.errors import ProtocolError

ROOT_ID = 1
MAX_READ = 1 << 20  # bytes of one READ: 256 pages, the kernel's default fs.fuse.max_pages_limit

# The kernel refuses to hand out requests to a buffer smaller than FUSE_MIN_READ_BUFFER or than the largest
# WRITE that was negotiated. We take no WRITEs, so the smallest will do.
MIN_BUFFER = 8192
MAX_WRITE = 4096

NAME_MAX = 255

_IN_HEADER = struct.Struct("<IIQQIIIHxx")
_INIT_IN = struct.Struct("<IIII")  # major, minor, max_readahead, flags
_FLAGS2 = struct.Struct("<I")  # follows _INIT_IN where flags has INIT_EXT
_READ_IN = struct.Struct("<QQIIQII")  # fh, offset, size, read_flags, lock_owner, flags, padding
_OPEN_IN = struct.Struct("<II")  # flags, open_flags
_INTERRUPT_IN = struct.Struct("<Q")  # unique of the request in question

IN_HEADER_BYTES = _IN_HEADER.size


class Opcode(enum.IntEnum):
    """``FUSE_*`` operations that have a meaning here; the others are unsupported."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    FALLOCATE = 43
    RENAME2 = 45
    COPY_FILE_RANGE = 47
    TMPFILE = 51


class InitFlag(enum.IntFlag):
    """``FUSE_*`` flags of INIT that we ask for; bits 32 and up travel in ``flags2``."""

    ASYNC_READ = 1 << 0  # several reads of one file at a time
    ASYNC_DIO = 1 << 15  # EROFS with directio submits its reads asynchronously
    PARALLEL_DIROPS = 1 << 18
    MAX_PAGES = 1 << 22  # requests of 1 MiB instead of 128 KiB
    EXPLICIT_INVAL_DATA = 1 << 25  # a device never changes: keep its pages
    INIT_EXT = 1 << 30
    HAS_RESEND = 1 << 39  # Linux 6.9: FUSE_NOTIFY_RESEND


class Request(msgspec.Struct, frozen=True, gc=False):
    """A parsed request. ``unique`` names it, ``node`` is the file or directory it is about."""

    unique: int
    node: int


class Init(Request, frozen=True, gc=False):
    major: int
    minor: int
    max_readahead: int
    flags: int


class Lookup(Request, frozen=True, gc=False):
    name: bytes


class GetAttr(Request, frozen=True, gc=False):
    pass


class Open(Request, frozen=True, gc=False):
    flags: int


class Read(Request, frozen=True, gc=False):
    offset: int
    size: int


class OpenDir(Request, frozen=True, gc=False):
    pass


class ReadDir(Request, frozen=True, gc=False):
    offset: int
    size: int


class StatFs(Request, frozen=True, gc=False):
    pass


class Notice(Request, frozen=True, gc=False):
    """RELEASE, RELEASEDIR, FLUSH, FSYNC, ACCESS, DESTROY: an empty success is all there is to say.

    Nothing is kept per handle, and ``default_permissions`` leaves access to the kernel.
    """


class Interrupt(Request, frozen=True, gc=False):
    """The caller of ``target`` got a signal. Needs no answer."""

    target: int


class Forget(Request, frozen=True, gc=False):
    """FORGET and BATCH_FORGET. Node ids are no references here. Needs no answer."""


class Change(Request, frozen=True, gc=False):
    """Any request to change something: EROFS."""

    opcode: int


class Unsupported(Request, frozen=True, gc=False):
    """Any other request: ENOSYS, after which the kernel does without it."""

    opcode: int


_Body = memoryview
_Parser = Callable[[int, int, _Body], Request]


def parse(data: memoryview) -> Request:
    """One request, as read from ``/dev/fuse``. Raise ``ProtocolError``, nothing else."""
    if len(data) < IN_HEADER_BYTES:
        raise ProtocolError(f"{len(data)} bytes, shorter than a header")
    length, opcode, unique, node, _uid, _gid, _pid, extensions = _IN_HEADER.unpack_from(data)
    if length != len(data):
        raise ProtocolError(f"says {length} bytes, has {len(data)}", unique)
    end = length - 8 * extensions
    if end < IN_HEADER_BYTES:
        raise ProtocolError(f"{extensions} units of extensions in {length} bytes", unique)
    parser = _PARSERS.get(opcode)
    if parser is None:
        kind = Change if opcode in _CHANGES else Unsupported
        return kind(unique, node, opcode)
    try:
        return parser(unique, node, data[IN_HEADER_BYTES:end])
    except struct.error as exc:
        raise ProtocolError(f"opcode {opcode} with {end - IN_HEADER_BYTES} bytes of arguments", unique) from exc


def _init(unique: int, node: int, body: _Body) -> Init:
    major, minor, readahead, flags = _INIT_IN.unpack_from(body)
    if flags & InitFlag.INIT_EXT and len(body) >= _INIT_IN.size + _FLAGS2.size:
        flags |= _FLAGS2.unpack_from(body, _INIT_IN.size)[0] << 32
    return Init(unique, node, major, minor, readahead, flags)


def _lookup(unique: int, node: int, body: _Body) -> Lookup:
    name, zero, rest = bytes(body).partition(b"\0")
    if not zero or rest or not 0 < len(name) <= NAME_MAX:
        raise ProtocolError(f"no name of 1 to {NAME_MAX} bytes and a zero", unique)
    return Lookup(unique, node, name)


def _open(unique: int, node: int, body: _Body) -> Open:
    return Open(unique, node, _OPEN_IN.unpack_from(body)[0])


def _read(unique: int, node: int, body: _Body) -> Read:
    _fh, offset, size, *_ = _READ_IN.unpack_from(body)
    return Read(unique, node, offset, size)


def _readdir(unique: int, node: int, body: _Body) -> ReadDir:
    _fh, offset, size, *_ = _READ_IN.unpack_from(body)
    return ReadDir(unique, node, offset, size)


def _interrupt(unique: int, node: int, body: _Body) -> Interrupt:
    return Interrupt(unique, node, _INTERRUPT_IN.unpack_from(body)[0])


def _bare(kind: type[Request]) -> _Parser:
    return lambda unique, node, _body: kind(unique, node)


_PARSERS: dict[int, _Parser] = {
    Opcode.LOOKUP: _lookup,
    Opcode.FORGET: _bare(Forget),
    Opcode.GETATTR: _bare(GetAttr),
    Opcode.OPEN: _open,
    Opcode.READ: _read,
    Opcode.STATFS: _bare(StatFs),
    Opcode.RELEASE: _bare(Notice),
    Opcode.FSYNC: _bare(Notice),
    Opcode.FLUSH: _bare(Notice),
    Opcode.INIT: _init,
    Opcode.OPENDIR: _bare(OpenDir),
    Opcode.READDIR: _readdir,
    Opcode.RELEASEDIR: _bare(Notice),
    Opcode.FSYNCDIR: _bare(Notice),
    Opcode.ACCESS: _bare(Notice),
    Opcode.INTERRUPT: _interrupt,
    Opcode.DESTROY: _bare(Notice),
    Opcode.BATCH_FORGET: _bare(Forget),
}

_CHANGES = frozenset(
    {
        Opcode.SETATTR,
        Opcode.SYMLINK,
        Opcode.MKNOD,
        Opcode.MKDIR,
        Opcode.UNLINK,
        Opcode.RMDIR,
        Opcode.RENAME,
        Opcode.LINK,
        Opcode.WRITE,
        Opcode.SETXATTR,
        Opcode.REMOVEXATTR,
        Opcode.CREATE,
        Opcode.FALLOCATE,
        Opcode.RENAME2,
        Opcode.COPY_FILE_RANGE,
        Opcode.TMPFILE,
    }
)

UNANSWERED = (Forget, Interrupt)
"""Kinds that take no answer; answering them would be an error of ours."""
