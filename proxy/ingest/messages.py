"""What the proxy and its ingest workers say to each other: frames over the worker's standard input and output.

A frame is a u32, little-endian, the length of what follows, and one msgpack-encoded message. Both ends are of
the same release, so there is no version. The first frame that a worker receives is ``Setup``. The end
of its input ends the worker, whatever it is doing: so it never outlives the proxy.
"""

from __future__ import annotations

import struct

import msgspec

LENGTH = struct.Struct("<I")
MAX_FRAME_BYTES = 2**31  # layer indexes and bootstraps of the largest images are some tens of MB


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """Base of all messages."""


class Setup(Message, frozen=True, array_like=True, tag=True):
    store: str
    quota_bytes: int
    zstd_level: int
    compressors: int  # threads for each layer
    max_entries: int
    max_path_bytes: int
    max_layer_bytes: int
    max_ratio: float


class IngestLayer(Message, frozen=True, array_like=True, tag=True):
    """Answered by ``Done`` with a layer index, or ``Failed``; meanwhile ``Progress``."""

    id: int
    path: str
    blob_bytes: int
    available: int  # leading bytes of the file that may be read now
    media_type: str
    diff_id: str
    verify_blob: str = ""


class Available(Message, frozen=True, array_like=True, tag=True):
    """More of a layer's file may be read."""

    id: int
    available: int


class BuildChain(Message, frozen=True, array_like=True, tag=True):
    """Answered by ``Done`` with an ``image.chain.BuiltChain``, or ``Failed``."""

    id: int
    indexes: list[bytes]


class Cancel(Message, frozen=True, array_like=True, tag=True):
    """The answer to a request is not wanted any more."""

    id: int


class Progress(Message, frozen=True, array_like=True, tag=True):
    id: int
    consumed: int  # bytes of the blob


class Done(Message, frozen=True, array_like=True, tag=True):
    id: int
    result: bytes


class Failed(Message, frozen=True, array_like=True, tag=True):
    id: int
    kind: str  # name of the exception's class
    text: str


Request = Setup | IngestLayer | Available | BuildChain | Cancel
Answer = Progress | Done | Failed


def frame(message: Message) -> bytes:
    body = msgspec.msgpack.encode(message)
    return LENGTH.pack(len(body)) + body
