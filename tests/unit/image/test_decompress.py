"""A blob becomes its tar, whatever compressed it, and whatever its media type says."""

import gzip
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fastpull.image.decompress import LAYER_MEDIA_TYPES, PIECE_BYTES, check_media_type, decompress
from fastpull.image.errors import LayerFormatError, UnsupportedMediaTypeError

DATA = b"".join(bytes([n % 251]) * (n % 7000) for n in range(600)) + os.urandom(300_000)


def in_pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[at : at + size] for at in range(0, len(data), size))


def tar_of(blob: bytes, size: int = 1 << 18) -> bytes:
    pieces = list(decompress(in_pieces(blob, size)))
    assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
    return b"".join(pieces)


def gzip_with_everything(data: bytes) -> bytes:
    """A member whose header has all optional fields."""
    deflate = zlib.compressobj(6, zlib.DEFLATED, -15)
    head = b"\x1f\x8b\x08" + bytes([2 | 4 | 8 | 16]) + bytes(4) + b"\0\xff"
    head += struct.pack("<H", 5) + b"extra" + b"layer.tar\0" + b"a comment\0"
    head += struct.pack("<H", zlib.crc32(head) & 0xFFFF)
    body = deflate.compress(data) + deflate.flush()
    return head + body + struct.pack("<II", zlib.crc32(data), len(data))


def zstd(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(level=1, **options).compress(data)


def skippable(data: bytes) -> bytes:
    return struct.pack("<II", 0x184D2A53, len(data)) + data


BLOBS = {
    "plain": DATA,
    "empty": b"",
    "gzip": gzip.compress(DATA, 1),
    "gzip-of-nothing": gzip.compress(b""),
    "gzip-members": b"".join(gzip.compress(part, 1) for part in in_pieces(DATA, 30_000)),
    "gzip-tiny-members": b"".join(gzip.compress(part, 1) for part in in_pieces(DATA[:40_000], 100)),
    "gzip-all-header-fields": gzip_with_everything(DATA) * 2,
    "zstd": zstd(DATA),
    "zstd-checksum": zstd(DATA, write_checksum=True),
    "zstd-no-size": zstd(DATA, write_content_size=False),
    "zstd-frames": b"".join(zstd(part) for part in in_pieces(DATA, 50_000)),
    "zstd-empty-frame": zstd(b"") + zstd(DATA),
    "zstd-skippable-first": skippable(b"x" * 100_000) + zstd(DATA) + skippable(b"") + skippable(b"seekable"),
    "zstd-only-skippable": skippable(b"nothing"),
}
CONTENTS = {"empty": b"", "gzip-of-nothing": b"", "gzip-tiny-members": DATA[:40_000], "zstd-only-skippable": b""}
CONTENTS["gzip-all-header-fields"] = DATA * 2


@pytest.mark.parametrize("size", [7, 1000, 1 << 18, 1 << 25])
@pytest.mark.parametrize("name", BLOBS)
def test_every_compression_is_told_by_its_first_bytes(name: str, size: int) -> None:
    blob = BLOBS[name]
    assert tar_of(blob, size) == CONTENTS.get(name, DATA)


COMPRESSED = [name for name in BLOBS if name not in ("plain", "empty")]


@pytest.mark.parametrize("name", COMPRESSED)
def test_a_cut_stream_is_refused(name: str) -> None:
    """Wherever it is cut but between members or frames, and also where the output would be complete."""
    blob = BLOBS[name]
    for cut in {len(blob) - 1, len(blob) - 4, len(blob) - 7, 12} & set(range(9, len(blob))):
        with pytest.raises(LayerFormatError):
            tar_of(blob[:cut])


@pytest.mark.parametrize("name", COMPRESSED)
def test_anything_behind_the_stream_is_refused(name: str) -> None:
    for rest in (b"x", bytes(512), b"junk" * 100):
        with pytest.raises(LayerFormatError):
            tar_of(BLOBS[name] + rest)


@pytest.mark.parametrize("name", ["gzip", "gzip-members", "zstd-checksum"])
def test_wrong_checksums_are_noticed(name: str) -> None:
    blob = bytearray(BLOBS[name])
    blob[-5 if name.startswith("gzip") else -1] ^= 1
    with pytest.raises(LayerFormatError):
        tar_of(bytes(blob))


def test_bombs_come_in_bounded_pieces() -> None:
    """A few bytes of zstd hold gigabytes of zeros: a step of the output is a mebibyte all the same."""
    blob = zstandard.ZstdCompressor(level=19).compress(bytes(64 << 20))
    assert len(blob) < 10_000
    assert sum(map(len, decompress([blob]))) == 64 << 20
    assert max(map(len, decompress([blob]))) <= PIECE_BYTES
    assert max(map(len, decompress([gzip.compress(bytes(8 << 20))]))) <= PIECE_BYTES


def test_a_window_beyond_the_limit_is_refused() -> None:
    """One stream must not take gigabytes of memory."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    blob = stream.compress(DATA) + stream.flush()
    with pytest.raises(LayerFormatError, match="zstd"):
        tar_of(blob)


def test_small_members_become_large_pieces() -> None:
    """Everything behind works by the piece; an eStargz layer has a member for each file."""
    assert len(list(decompress([BLOBS["gzip-tiny-members"]]))) == 1


@pytest.mark.fault(
    "hostile input: compressed layers",
    done="random bytes, with and without the magic of gzip and zstd",
    promised="read, or refused with the reason",
)
@given(st.binary(max_size=300), st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\x50\x2a\x4d\x18"]))
def test_arbitrary_bytes_raise_nothing_else(data: bytes, magic: bytes) -> None:
    with suppress(LayerFormatError):
        tar_of(magic + data, 7)


@given(st.sampled_from(COMPRESSED), st.integers(0, 1 << 20), st.integers(1, 255))
def test_a_flipped_byte_is_refused_or_harmless(name: str, at: int, flip: int) -> None:
    """What the stream's own checksums do not cover, the diffID does."""
    blob = bytearray(BLOBS[name])
    blob[at % len(blob)] ^= flip
    with suppress(LayerFormatError):
        tar_of(bytes(blob))


@pytest.mark.parametrize("media_type", sorted(LAYER_MEDIA_TYPES))
def test_layers_of_docker_and_oci_are_understood(media_type: str) -> None:
    check_media_type(media_type)
    check_media_type(media_type + "; charset=utf-8")


@pytest.mark.parametrize(
    "media_type",
    [
        "",
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar+xz",
        "application/vnd.cncf.helm.chart.content.v1.tar+gzip",
        "application/vnd.in-toto+json",
    ],
)
def test_other_types_are_refused(media_type: str) -> None:
    with pytest.raises(UnsupportedMediaTypeError, match="not understood"):
        check_media_type(media_type)
