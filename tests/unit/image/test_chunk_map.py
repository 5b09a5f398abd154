"""The chunk map answers which chunks a read of the device needs."""

from __future__ import annotations

import contextlib
import mmap
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpull.cache.digest import ChunkId, chunk_id
from fastpull.cache.frames import MAX_CHUNK_BYTES
from fastpull.image.chunk_map import ChunkMap, Piece, pack
from fastpull.image.errors import IndexFormatError


def ids(*numbers: int) -> list[ChunkId]:
    return [chunk_id(b"%d" % number) for number in numbers]


A, B, C = ids(1, 2, 3)
# 0-99 A, 100-149 B, hole, 4096-4195 C, hole, 8192-8291 A again, hole up to 12288
PLACES = [(0, 100, A), (100, 50, B), (4096, 100, C), (8192, 100, A)]
PACKED = pack(PLACES, 12288)


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        pytest.param(0, 12288, [0, 1, 2, 3], id="everything"),
        pytest.param(0, 1, [0], id="first-byte"),
        pytest.param(99, 1, [0], id="last-byte-of-a-chunk"),
        pytest.param(99, 2, [0, 1], id="over-an-edge"),
        pytest.param(100, 1, [1], id="first-byte-of-a-chunk"),
        pytest.param(50, 60, [0, 1], id="middle-to-middle"),
        pytest.param(150, 3946, [], id="a-hole"),
        pytest.param(149, 3947, [1], id="a-hole-and-the-byte-before"),
        pytest.param(150, 3947, [2], id="a-hole-and-the-byte-after"),
        pytest.param(8292, 100000, [], id="behind-the-last-chunk"),
        pytest.param(8191, 2, [3], id="into-the-last-chunk"),
        pytest.param(10**12, 10, [], id="far-outside"),
        pytest.param(0, 0, [], id="nothing"),
        pytest.param(0, -5, [], id="less-than-nothing"),
    ],
)
def test_a_read_needs_these_chunks(offset: int, length: int, expected: list[int]) -> None:
    """Every chunk that touches the range, whole and in order; holes give nothing."""
    with ChunkMap.open(PACKED) as chunk_map:
        pieces = chunk_map.pieces(offset, length)
    assert pieces == [Piece(i, PLACES[i][2], PLACES[i][0], PLACES[i][1]) for i in expected]


def test_places_are_found_by_number_and_by_id() -> None:
    """``index_of`` gives the first place of a chunk that stands at several."""
    with ChunkMap.open(PACKED) as chunk_map:
        assert len(chunk_map) == 4
        assert chunk_map.device_bytes == 12288
        at = [(chunk_map.offset_at(i), chunk_map.size_at(i), chunk_map.id_at(i)) for i in range(4)]
        assert at == PLACES
        assert [chunk_map.index_of(chunk) for chunk in (A, B, C)] == [0, 1, 2]
        assert chunk_map.index_of(ids(4)[0]) is None
        assert A in chunk_map
        assert ids(4)[0] not in chunk_map
        assert "text" not in chunk_map


def test_an_empty_map_is_a_map() -> None:
    with ChunkMap.open(pack([], 4096)) as chunk_map:
        assert len(chunk_map) == 0
        assert chunk_map.pieces(0, 4096) == []
        assert chunk_map.index_of(A) is None


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.integers(0, 5)), max_size=30),
    st.integers(0, 100),
    st.integers(0, 100),
)
def test_pieces_agree_with_a_search_of_all(parts: list[tuple[int, int, int]], offset: int, length: int) -> None:
    """For any places: a chunk is among the pieces if and only if it shares a byte with the range."""
    places, end = [], 0
    for gap, size, number in parts:
        places.append((end + gap, size, ids(number)[0]))
        end += gap + size
    with ChunkMap.open(pack(places, end)) as chunk_map:
        found = [(piece.device_offset, piece.size, piece.chunk_id) for piece in chunk_map.pieces(offset, length)]
        assert found == [p for p in places if p[0] < offset + length and offset < p[0] + p[1] and length]
        for index, (_, _, chunk) in enumerate(places):
            first = chunk_map.index_of(chunk)
            assert first is not None
            assert first <= index
            assert places[first][2] == chunk


def test_a_map_is_read_from_a_memory_map_that_can_be_closed(tmp_path: Path) -> None:
    path = tmp_path / "chunk map"
    path.write_bytes(PACKED)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        with ChunkMap.open(mapped) as chunk_map:
            assert chunk_map.pieces(100, 1)[0].chunk_id == B


@pytest.mark.parametrize("size", [0, MAX_CHUNK_BYTES + 1])
def test_impossible_chunks_are_not_packed(size: int) -> None:
    with pytest.raises(IndexFormatError):
        pack([(0, size, A)], 2**30)


def broken(format_: str, offset: int, value: object) -> bytes:
    data = bytearray(PACKED)
    struct.pack_into(format_, data, offset, value)
    return bytes(data)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(PACKED[:-1], id="cut"),
        pytest.param(PACKED + b"\0", id="too-long"),
        pytest.param(PACKED[:31], id="cut-header"),
        pytest.param(broken("4s", 0, b"FPCX"), id="other-magic"),
        pytest.param(broken("<I", 4, 2), id="newer-version"),
        pytest.param(broken("<Q", 8, 5), id="wrong-count"),
        pytest.param(broken("<Q", 8, 2**63), id="absurd-count"),
        pytest.param(broken("<Q", 16, 8291), id="device-too-short"),
        pytest.param(broken("<Q", 40, 99), id="overlap"),
        pytest.param(broken("<Q", 56, 2**64 - 1), id="offset-overflow"),
        pytest.param(broken("<I", 64 + 12, 0), id="empty-chunk"),
        pytest.param(broken("<I", 64 + 12, 2**32 - 1), id="huge-chunk"),
        pytest.param(broken("<I", 80, 4), id="order-names-nothing"),
    ],
)
def test_damaged_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(IndexFormatError):
        ChunkMap.open(data)


@pytest.mark.fault(
    "hostile input: chunk maps",
    done="bytes changed",
    promised="read or refused",
)
@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.integers(0, len(PACKED) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_hostile_bytes_raise_index_format_error_and_nothing_else(changes: list[tuple[int, int]]) -> None:
    data = bytearray(PACKED)
    for position, value in changes:
        data[position] = value
    with contextlib.suppress(IndexFormatError), ChunkMap.open(bytes(data)) as chunk_map:
        chunk_map.pieces(0, 2**63)
        for chunk in (A, B, C, *ids(9)):
            chunk_map.index_of(chunk)
