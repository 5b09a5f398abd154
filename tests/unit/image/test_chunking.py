"""Files are cut the same however they arrive, and the cuts are part of the format."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpull.cache.digest import chunk_id
from fastpull.image.chunking import MAX_BYTES, MIN_BYTES, Chunk, Chunker


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def whole(data: bytes) -> list[Chunk]:
    return Chunker().whole(memoryview(data))


def fed(chunker: Chunker, parts: list[bytes | int]) -> list[Chunk]:
    """Bytes, or a number of zeros."""
    chunks: list[Chunk] = []
    for part in parts:
        chunks += chunker.feed_zeros(part) if isinstance(part, int) else chunker.feed(memoryview(part))
    return chunks + chunker.finish()


def plain(chunks: list[Chunk]) -> list[tuple[bytes, bytes]]:
    return [(chunk, bytes(data)) for chunk, data in chunks]


@pytest.mark.parametrize("size", [0, 1, MIN_BYTES - 1, MIN_BYTES, MIN_BYTES + 1, MAX_BYTES, MAX_BYTES + 1, 3_000_000])
def test_chunks_are_the_file(size: int) -> None:
    """In order, complete, named by their content, and within the bounds."""
    data = noise(size)
    chunks = whole(data)
    assert b"".join(bytes(part) for _, part in chunks) == data
    assert all(chunk == chunk_id(part) for chunk, part in chunks)
    assert all(MIN_BYTES <= len(part) <= MAX_BYTES for _, part in chunks[:-1])
    assert all(0 < len(part) <= MAX_BYTES for _, part in chunks)


def test_small_files_are_one_chunk() -> None:
    assert len(whole(noise(MIN_BYTES))) == 1


def test_the_cuts_are_part_of_the_format() -> None:
    """If this fails, every store loses its deduplication against the images it knows: see chunking.VERSION."""
    cuts = [len(data) for _, data in whole(noise(1_000_000))]
    assert cuts[:9] == [63283, 54111, 62860, 24113, 27575, 63969, 52939, 56317, 73240]
    assert cuts[9:] == [100216, 75214, 65150, 75386, 49604, 63795, 18607, 51269, 22352]
    assert [len(data) for _, data in whole(bytes(600_000))] == [262144, 262144, 75712]


def test_the_average_is_about_64_kib() -> None:
    data = noise(16 << 20, seed=5)
    assert 56 << 10 < len(data) / len(whole(data)) < 66 << 10


def test_an_insertion_changes_the_chunks_around_it_only() -> None:
    """What deduplication between two versions of a file lives on."""
    data = noise(4_000_000)
    changed = data[:1_000_000] + b"inserted" + data[1_000_000:]
    old = {chunk for chunk, _ in whole(data)}
    new = [chunk for chunk, _ in whole(changed) if chunk not in old]
    assert 1 <= len(new) <= 3


def test_files_do_not_depend_on_their_neighbours() -> None:
    chunker = Chunker()
    first, second = noise(500_000, 1), noise(500_000, 2)
    assert plain(fed(chunker, [first])) == plain(whole(first))
    assert plain(fed(chunker, [second])) == plain(whole(second))
    assert plain(chunker.whole(memoryview(first))) == plain(whole(first))


@settings(max_examples=40)
@given(st.integers(0, 50), st.lists(st.integers(1, 400_000), min_size=1, max_size=8))
def test_parts_of_any_size_give_the_same_chunks(seed: int, sizes: list[int]) -> None:
    data = noise(sum(sizes), seed)
    parts: list[bytes | int] = []
    at = 0
    for size in sizes:
        parts.append(data[at : at + size])
        at += size
    assert plain(fed(Chunker(), parts)) == plain(fed(Chunker(), [data]))
    if len(data) > MIN_BYTES:
        assert plain(fed(Chunker(), parts)) == plain(whole(data))


def test_tiny_parts_give_the_same_chunks() -> None:
    data = noise(400_000)
    parts: list[bytes | int] = [data[at : at + 997] for at in range(0, len(data), 997)]
    assert plain(fed(Chunker(), parts)) == plain(whole(data))


@settings(max_examples=40)
@given(st.lists(st.one_of(st.integers(1, 700_000), st.integers(1, 100_000).map(lambda n: noise(n, n))), max_size=6))
def test_holes_are_cut_like_zeros(parts: list[bytes | int]) -> None:
    """A sparse file shares its chunks with the same file stored in full."""
    data = b"".join(bytes(part) if isinstance(part, int) else part for part in parts)
    assert plain(fed(Chunker(), parts)) == plain(fed(Chunker(), [data]))


def test_huge_holes_are_cheap() -> None:
    """A hole of 64 GiB is a quarter of a million references to one chunk, and nobody looks at 64 GiB."""
    total = count = 0
    for _, data in Chunker().feed_zeros(1 << 36):
        total += len(data)
        count += 1
    assert count == total // MAX_BYTES
    assert (1 << 36) - total < MAX_BYTES


def test_content_is_not_copied() -> None:
    data = noise(700_000)
    assert all(isinstance(part, memoryview) and part.obj is data for _, part in whole(data))
