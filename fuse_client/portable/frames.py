"""What a child and the daemon say to each other, on the unix socket ``RUN_DIR/portable.sock``. Pure.

Little-endian. A connection begins with one hello of the child and one answer of the daemon:

    hello   0   4   str   magic, b"FPPD"
            4   4   u32   version, 1
            8   32  bytes chainID (sha256, raw)
    answer  0   4   str   magic, b"FPPD"
            4   4   u32   version, 1
            8   8   u64   bytes of the device; 0 = the daemon does not serve this chain (now), and hangs up

Then frames in both directions, each with a head of 24 bytes:

    0   1   u8    kind
    1   3         zero
    4   4   u32   number
    8   8   u64   id
    16  8   u64   offset

    from the child    READ    number bytes at offset of the device, 1 to 1 MiB, as request id
                      USED    the numbers of so many chunks, u32 each, follow: read out of the store by the child since
                              its last such frame, in this order; id says how many reads it answered by itself
    from the daemon   DATA    answers request id: number bytes follow
                      FAILED  answers request id: number is an errno
                      AGAIN   report chunks anew, also those that were reported before: a new trace begins

Answers come in any order, one for each READ. At most 64 READs may wait. A frame that is none of these ends the
connection. A change of any of this takes a new version; the daemon hangs up on versions that it does not speak, and
such a child goes on with what the store has.
"""

from __future__ import annotations

import enum
import struct
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from fastpull.cache.digest import Digest
from fastpull.fuse_client.portable.errors import FrameError

VERSION = 1
MAX_READ = 1 << 20
MAX_WAITING = 64
MAX_USED = 16_384  # chunks in one frame

_MAGIC = b"FPPD"
_HELLO = struct.Struct("<4sI32s")
_ANSWER = struct.Struct("<4sIQ")
_HEAD = struct.Struct("<B3xIQQ")

HELLO_BYTES = _HELLO.size
ANSWER_BYTES = _ANSWER.size
HEAD_BYTES = _HEAD.size


class Kind(enum.IntEnum):
    READ = 1
    USED = 2
    DATA = 3
    FAILED = 4
    AGAIN = 5


class Head(NamedTuple):
    kind: Kind
    number: int
    id: int
    offset: int

    @property
    def body_bytes(self) -> int:
        """How much follows."""
        match self.kind:
            case Kind.DATA:
                return self.number
            case Kind.USED:
                return 4 * self.number
            case _:
                return 0


_FROM_CHILD = frozenset({Kind.READ, Kind.USED})
_LIMITS = {Kind.READ: MAX_READ, Kind.USED: MAX_USED, Kind.DATA: MAX_READ, Kind.FAILED: 4095, Kind.AGAIN: 0}


def pack_hello(chain: Digest) -> bytes:
    return _HELLO.pack(_MAGIC, VERSION, bytes.fromhex(chain.hex))


def unpack_hello(data: bytes) -> Digest:
    """Raise ``FrameError``, also for a version that is not ours."""
    magic, version, chain = _HELLO.unpack(data)
    _check(magic, version)
    return Digest(chain.hex())


def pack_answer(device_bytes: int) -> bytes:
    return _ANSWER.pack(_MAGIC, VERSION, device_bytes)


def unpack_answer(data: bytes) -> int:
    """Bytes of the device; 0 = not served. Raise ``FrameError``."""
    magic, version, device_bytes = _ANSWER.unpack(data)
    _check(magic, version)
    return int(device_bytes)


def pack_head(kind: Kind, count: int, id_: int = 0, offset: int = 0) -> bytes:
    return _HEAD.pack(kind, count, id_, offset)


def unpack_head(data: bytes, *, from_child: bool) -> Head:
    """Raise ``FrameError`` for what this side may not say, or not in this size."""
    number, count, id_, offset = _HEAD.unpack(data)
    try:
        kind = Kind(number)
    except ValueError as exc:
        raise FrameError(f"a frame of the unknown kind {number}") from exc
    if (kind in _FROM_CHILD) != from_child:
        raise FrameError(f"a {kind.name} frame from the wrong side")
    if count > _LIMITS[kind] or (kind is Kind.READ and not count):
        raise FrameError(f"a {kind.name} frame with the count {count}")
    return Head(kind, count, id_, offset)


def pack_used(chunks: Sequence[int], reads: int) -> bytes:
    """At most ``MAX_USED`` chunks."""
    return pack_head(Kind.USED, len(chunks), reads) + struct.pack(f"<{len(chunks)}I", *chunks)


def unpack_used(body: bytes) -> array[int]:
    return array("I", struct.unpack(f"<{len(body) // 4}I", body))


def _check(magic: bytes, version: int) -> None:
    if magic != _MAGIC:
        raise FrameError("what connects there is no fastpull")
    if version != VERSION:
        raise FrameError(f"it speaks version {version}, this one {VERSION}: restart what is older")
