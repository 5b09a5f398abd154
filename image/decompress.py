"""A layer's blob → its tar: gzip, zstd or nothing. Pure: pieces in, pieces out.

The compression is told from the first bytes, as containerd does (``pkg/archive/compression``); the media type
only says whether the blob is a layer of a kind that is understood. Registries hold layers whose media type
says gzip and whose bytes are a plain tar, and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fastpull.image import gzip_members
from fastpull.image.errors import UnsupportedMediaTypeError
from fastpull.image.zstd_frames import decompress_zstd, is_zstd

PIECE_BYTES = 1 << 20
"""A piece of the tar has at most so many bytes: enough to be cheap to hand on, and about a core's L2 cache, in
which the hash of the tar then finds it."""

LAYER_MEDIA_TYPES = frozenset(
    (
        "application/vnd.docker.image.rootfs.diff.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd",
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.oci.image.layer.v1.tar+zstd",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    )
)

_LONGEST_MAGIC = 8
_SMALL = PIECE_BYTES // 4


def check_media_type(media_type: str) -> None:
    """Raise ``UnsupportedMediaTypeError`` unless it is that of a layer which can be indexed."""
    if media_type.partition(";")[0].strip() not in LAYER_MEDIA_TYPES:
        raise UnsupportedMediaTypeError(
            f"layers of type {media_type!r} are not understood (encrypted? foreign?); the image is pulled as always"
        )


def decompress(blob: Iterable[bytes]) -> Iterator[bytes]:
    """The tar in ``blob``, in pieces of 1 to ``PIECE_BYTES`` bytes.

    Raise ``LayerFormatError`` for a broken or cut stream, and for anything behind a compressed one.
    """
    pieces = iter(blob)
    start = b""
    for piece in pieces:
        start += piece
        if len(start) >= _LONGEST_MAGIC:
            break
    whole = _chain(start, pieces)
    if start.startswith(gzip_members.MAGIC):
        return _coalesced(gzip_members.decompress_gzip(whole, PIECE_BYTES))
    if is_zstd(start):
        return _coalesced(decompress_zstd(whole, PIECE_BYTES))
    return _cut(whole)


def _chain(start: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    if start:
        yield start
    yield from pieces


def _cut(pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        for at in range(0, len(piece), PIECE_BYTES):
            yield piece[at : at + PIECE_BYTES]


def _coalesced(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Join small pieces: everything behind works by the piece."""
    small: list[bytes] = []
    size = 0
    for piece in pieces:
        if small and size + len(piece) > PIECE_BYTES:
            yield b"".join(small)
            small, size = [], 0
        if not small and len(piece) >= _SMALL:
            yield piece
        else:
            small.append(piece)
            size += len(piece)
    if small:
        yield b"".join(small)
