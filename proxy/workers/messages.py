"""What the serving processes say to each other beside HTTP: frames over a follower's standard input and output.

A frame is a u32, little-endian, the length of what follows, and one msgpack-encoded message. Both ends are of the
same release, so there is no version. ``Setup`` is all that a follower gets on its input, whose end is its sign
to leave; on its output it sends ``Report`` after ``Report``, the first when it serves.
"""

from __future__ import annotations

import struct

import msgspec

from fastpull.cache.digest import CHUNK_ID_BYTES

LENGTH = struct.Struct("<I")
MAX_CHUNKS = 65536
"""Used chunks in one report. What is used beyond is not told: it counts as used when it is asked for again."""
MAX_BLOBS = 512
MAX_FRAME_BYTES = MAX_CHUNKS * CHUNK_ID_BYTES + 2**21


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """Everything a follower knows. Nothing in it is a secret; upstreams are names only."""

    number: int  # of this process, from 1; the leader is 0
    address: str
    port: int
    tls_certificate: str | None
    tls_key: str | None
    tls_client_ca: str | None
    access_log: bool
    log_level: str
    chunks: str  # the chunk store
    blobs: str  # the directory of complete blobs
    leader: str  # the leader's socket
    default_upstream: str
    upstreams: tuple[str, ...]


class Count(msgspec.Struct, frozen=True, array_like=True):
    """How much a counter of ``proxy/metrics.py`` grew."""

    name: str
    labels: tuple[str, ...]
    amount: float


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a follower did since its last report."""

    counts: tuple[Count, ...] = ()
    chunks: bytes = b""  # ids of the chunks that it sent, one after the other
    blobs: tuple[str, ...] = ()  # digests of the blobs that it sent from


def frame(message: msgspec.Struct) -> bytes:
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body
