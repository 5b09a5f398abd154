"""Chunk content to stored bytes and back."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fastpull.cache.codec import decode, encode
from fastpull.cache.digest import chunk_id
from fastpull.cache.errors import ChunkCorruptError
from fastpull.cache.frames import MAX_CHUNK_BYTES
from fastpull.cache.store import Encoding, StoredChunk

TEXT = b"the same words again and again, " * 2000


@given(st.binary(max_size=5000), st.sampled_from([1, 3]), st.integers(1, 20))
def test_content_comes_back(data: bytes, level: int, times: int) -> None:
    """Whatever it is, at any level, from bytes or a buffer."""
    data *= times
    stored = encode(memoryview(data), level)

    assert len(data) == stored.size
    assert len(stored.data) <= len(data)
    assert data == decode(stored, chunk_id(data))


def test_what_zstd_does_not_make_smaller_stays_raw() -> None:
    """Text is compressed, noise is kept as it is and not copied."""
    noise = os.urandom(50_000)

    assert encode(TEXT).encoding is Encoding.ZSTD
    assert len(encode(TEXT).data) < len(TEXT) // 10
    assert encode(noise).encoding is Encoding.RAW
    assert encode(noise).data is noise


def frame(data: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


@pytest.mark.parametrize(
    "stored",
    [
        pytest.param(StoredChunk(Encoding.RAW, len(TEXT), TEXT[:-1]), id="raw-cut"),
        pytest.param(StoredChunk(Encoding.RAW, len(TEXT), TEXT[:-1] + b"?"), id="raw-changed"),
        pytest.param(StoredChunk(Encoding.ZSTD, len(TEXT), frame(TEXT)[:-3]), id="zstd-cut"),
        pytest.param(StoredChunk(Encoding.ZSTD, len(TEXT), b"no frame at all"), id="zstd-junk"),
        pytest.param(StoredChunk(Encoding.ZSTD, len(TEXT), b""), id="zstd-empty"),
        pytest.param(StoredChunk(Encoding.ZSTD, len(TEXT), frame(TEXT) + b"more"), id="zstd-and-more"),
        pytest.param(StoredChunk(Encoding.ZSTD, len(TEXT), frame(TEXT.upper())), id="zstd-other-content"),
        pytest.param(StoredChunk(Encoding.ZSTD, len(TEXT) - 1, frame(TEXT)), id="size-too-small"),
        pytest.param(StoredChunk(Encoding.ZSTD, len(TEXT) + 1, frame(TEXT)), id="size-too-large"),
        pytest.param(StoredChunk(Encoding.RAW, MAX_CHUNK_BYTES + 1, bytes(MAX_CHUNK_BYTES + 1)), id="too-large"),
        pytest.param(
            StoredChunk(Encoding.ZSTD, 1000, frame(bytes(50_000_000), write_content_size=False)), id="bomb-unsized"
        ),
        pytest.param(StoredChunk(Encoding.ZSTD, 1000, frame(bytes(50_000_000))), id="bomb-sized"),
    ],
)
def test_damage_is_found(stored: StoredChunk) -> None:
    """Whatever is wrong with a stored chunk, it is ``ChunkCorruptError`` that says so."""
    with pytest.raises(ChunkCorruptError) as caught:
        decode(stored, chunk_id(TEXT))

    assert chunk_id(TEXT) == caught.value.chunk


def test_a_frame_that_claims_to_be_huge_is_not_believed() -> None:
    """Its header may promise 2**60 bytes; nothing of that size is allocated."""
    claim = bytes.fromhex("28b52ffd") + b"\xe0" + (2**60).to_bytes(8, "little") + b"\x01\x00\x00"
    assert zstandard.frame_content_size(claim) == 2**60

    with pytest.raises(ChunkCorruptError):
        decode(StoredChunk(Encoding.ZSTD, 1000, claim), chunk_id(TEXT))


@given(st.binary(max_size=300), st.integers(0, 2 * MAX_CHUNK_BYTES), st.sampled_from(Encoding))
def test_hostile_bytes_raise_nothing_else(data: bytes, size: int, encoding: Encoding) -> None:
    """Decoding ends with the content or with ``ChunkCorruptError``."""
    with contextlib.suppress(ChunkCorruptError):
        assert chunk_id(decode(StoredChunk(encoding, size, data), chunk_id(data))) == chunk_id(data)


def test_without_verification_only_the_form_is_checked() -> None:
    """For chunks that were verified before."""
    stored = encode(TEXT)

    assert decode(stored, chunk_id(b"other"), verify=False) == TEXT
    with pytest.raises(ChunkCorruptError):
        decode(stored._replace(size=5), chunk_id(b"other"), verify=False)


def test_threads_do_not_disturb_each_other() -> None:
    """Contexts are a thread's own."""
    pieces = [os.urandom(100) * (50 + number) for number in range(40)]
    with ThreadPoolExecutor(4) as threads:
        contents = list(threads.map(lambda piece: decode(encode(piece), chunk_id(piece)), pieces * 5))

    assert pieces * 5 == contents
