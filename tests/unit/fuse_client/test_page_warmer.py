"""From a plan's places on the device to ranges of files."""

from __future__ import annotations

from fakes.layers import Content, directory, hardlink, layers, symlink
from hypothesis import given
from hypothesis import strategies as st

from fastpull.fuse_client.page_warmer import Place, file_ranges, joined, memory_allows, places
from fastpull.image.chain import build_chain
from fastpull.image.chunk_map import ChunkMap
from fastpull.image.erofs.reader import Bootstrap


def test_every_chunk_of_the_device_belongs_to_a_file() -> None:
    """All chunks of an image, as ranges of files, are the image's content, each byte once."""
    content = Content()
    entries = [
        directory(b"a"),
        content.file(b"a/one", b"1" * 10_000),
        content.file(b"two", bytes(range(256)) * 100),
        content.file(b"empty", b""),
        symlink(b"link", b"two"),
        hardlink(b"again", b"two"),
    ]
    built = build_chain(layers(entries))
    chunk_map = ChunkMap.open(built.chunk_map)
    with Bootstrap.open(built.bootstrap) as bootstrap:
        order = places(bootstrap)
    ranges = [(chunk_map.offset_at(n), chunk_map.size_at(n)) for n in range(len(chunk_map))]

    covered: dict[bytes, int] = {}
    for path, offset, length in file_ranges(ranges, order):
        assert covered.get(path, 0) == offset
        covered[path] = offset + length
    assert covered in ({b"/a/one": 10_000, b"/two": 25_600}, {b"/a/one": 10_000, b"/again": 25_600})


@given(
    sizes=st.lists(st.integers(1, 9000), max_size=8),
    ranges=st.lists(st.tuples(st.integers(0, 80_000), st.integers(0, 20_000)), max_size=5),
)
def test_any_range_stays_within_its_files(sizes: list[int], ranges: list[tuple[int, int]]) -> None:
    """Gaps and what lies behind the last file are nobody's."""
    order, at = [], 0
    for number, size in enumerate(sizes):
        order.append(Place(at, size, b"/%d" % number))
        at += -(-size // 4096) * 4096
    expected = {byte for start, length in ranges for byte in range(start, start + length)} & {
        place.offset + n for place in order for n in range(place.size)
    }

    by_path = {place.path: place for place in order}
    got = {
        by_path[path].offset + offset + n for path, offset, length in file_ranges(ranges, order) for n in range(length)
    }
    assert got == expected


def test_memory_is_looked_at() -> None:
    """The kernel's own numbers can be read."""
    assert memory_allows() in (True, False)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9000)), max_size=12))
def test_joining_ranges_loses_no_byte(blocks: list[tuple[int, int]]) -> None:
    """In their order; what is read besides lies in the blocks of their ends."""
    ranges = [(block * 4096, size) for block, size in blocks]

    merged = list(joined(ranges))

    at = 0
    for offset, size in ranges:
        while not (merged[at][0] <= offset and offset + size <= sum(merged[at])):
            at += 1
    assert sum(size for _, size in merged) <= sum(-(-size // 4096) * 4096 for _, size in ranges)


def test_what_follows_block_for_block_is_one_range() -> None:
    """A chunk that ends within a block is followed by the next block's."""
    assert list(joined([(0, 4096), (4096, 100), (8192, 10), (0, 5)])) == [(0, 8202), (0, 5)]
