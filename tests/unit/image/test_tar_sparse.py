"""Sparse files of every format that GNU tar ever wrote come out whole."""

import pytest
from fakes.tars import END, GNU, header, padded, pax
from hypothesis import given
from hypothesis import strategies as st

from fastpull.image.errors import LayerFormatError
from fastpull.image.tar_stream import Hole, read_tar

Region = tuple[int, int]


def read(tar: bytes, piece: int = 1 << 20) -> tuple[bytes, int, bytes]:
    """Name, size and content of the only member."""
    head, *rest = read_tar(tar[at : at + piece] for at in range(0, len(tar), piece))
    content = b"".join(bytes(event.size) if isinstance(event, Hole) else bytes(event) for event in rest)  # type: ignore[arg-type]
    return head.name, head.size, content  # type: ignore[union-attr]


def old_gnu(regions: list[Region], size: int, stored: bytes) -> bytes:
    def table(part: list[Region], count: int) -> bytes:
        packed = b"".join(b"%011o\0%011o\0" % region for region in part)
        return packed.ljust(24 * count, b"\0")

    rest = regions[4:]
    block = header(
        b"sparse",
        b"S",
        size=len(stored),
        magic=GNU,
        extra={386: table(regions[:4], 4) + (b"\1" if rest else b"\0"), 483: b"%011o\0" % size},
    )
    while rest:
        part, rest = rest[:21], rest[21:]
        block += (table(part, 21) + (b"\1" if rest else b"\0")).ljust(512, b"\0")
    return block + padded(stored) + END


def pax_0_0(regions: list[Region], size: int, stored: bytes) -> bytes:
    pairs = [(b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"%d" % len(regions))]
    for offset, length in regions:
        pairs += [(b"GNU.sparse.offset", b"%d" % offset), (b"GNU.sparse.numbytes", b"%d" % length)]
    return pax(*pairs) + header(b"sparse", size=len(stored)) + padded(stored) + END


def pax_0_1(regions: list[Region], size: int, stored: bytes) -> bytes:
    numbers = b",".join(b"%d,%d" % region for region in regions)
    pairs = [(b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"%d" % len(regions))]
    pairs += [(b"GNU.sparse.name", b"sparse"), (b"GNU.sparse.map", numbers)]
    return pax(*pairs) + header(b"GNUSparseFile.1/sparse", size=len(stored)) + padded(stored) + END


def pax_1_0(regions: list[Region], size: int, stored: bytes) -> bytes:
    lines = [len(regions), *(number for region in regions for number in region)]
    content = padded(b"".join(b"%d\n" % line for line in lines)) + stored
    pairs = [(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"sparse")]
    pairs += [(b"GNU.sparse.realsize", b"%d" % size)]
    return pax(*pairs) + header(b"GNUSparseFile.1/sparse", size=len(content)) + padded(content) + END


FORMATS = [old_gnu, pax_0_0, pax_0_1, pax_1_0]


@st.composite
def sparse_files(draw: st.DrawFn) -> tuple[list[Region], int, bytes, bytes]:
    """Regions, size, what the archive stores, and what the file holds."""
    regions, stored, content = [], b"", b""
    for _ in range(draw(st.integers(1, 60))):
        content += bytes(draw(st.integers(1, 700)))
        data = draw(st.binary(min_size=1, max_size=40))
        regions.append((len(content), len(data)))
        stored += data
        content += data
    content += bytes(draw(st.integers(0, 700)))
    return regions, len(content), stored, content


@pytest.mark.parametrize("write", FORMATS)
@given(sparse_files(), st.integers(1, 3000))
def test_holes_and_data_come_in_their_places(write, file, piece: int) -> None:  # type: ignore[no-untyped-def]
    regions, size, stored, content = file
    assert read(write(regions, size, stored), piece) == (b"sparse", size, content)


@pytest.mark.parametrize("write", FORMATS)
def test_a_file_may_be_one_hole(write) -> None:  # type: ignore[no-untyped-def]
    """GNU tar marks the end of such a file by a region without length."""
    assert read(write([(100_000, 0)], 100_000, b"")) == (b"sparse", 100_000, bytes(100_000))


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize(
    ("regions", "size", "stored"),
    [
        pytest.param([(100, 10), (105, 10)], 1000, b"x" * 20, id="overlap"),
        pytest.param([(500, 10), (100, 10)], 1000, b"x" * 20, id="out-of-order"),
        pytest.param([(995, 10)], 1000, b"x" * 10, id="behind-the-end"),
        pytest.param([(100, 10)], 1000, b"x" * 9, id="too-little-stored"),
        pytest.param([(100, 10)], 1000, b"x" * 11, id="too-much-stored"),
    ],
)
def test_maps_that_contradict_the_file_are_refused(write, regions, size, stored) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(LayerFormatError):
        read(write(regions, size, stored))


@pytest.mark.parametrize(
    "pairs",
    [
        pytest.param([(b"GNU.sparse.numbytes", b"1"), (b"GNU.sparse.offset", b"0")], id="numbers-out-of-order"),
        pytest.param([(b"GNU.sparse.map", b"0,1,2"), (b"GNU.sparse.numblocks", b"1")], id="odd-count"),
        pytest.param([(b"GNU.sparse.map", b"0,x"), (b"GNU.sparse.numblocks", b"1")], id="no-number"),
        pytest.param([(b"GNU.sparse.map", b"0,1")], id="no-count"),
        pytest.param([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")], id="map-missing-from-content"),
    ],
)
def test_broken_maps_are_refused(pairs: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(LayerFormatError):
        read(pax(*pairs) + header(b"f", size=1) + padded(b"1") + END)


def test_an_unknown_version_is_an_ordinary_file() -> None:
    """As in Go: what can not be interpreted is not interpreted."""
    tar = pax((b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"9"))
    assert read(tar + header(b"f", size=1) + padded(b"1") + END) == (b"f", 1, b"1")


def test_a_directory_can_not_be_sparse() -> None:
    tar = pax((b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.numblocks", b"1")) + header(b"d", b"5") + END
    with pytest.raises(LayerFormatError):
        read(tar)


def test_a_star_header_is_no_sparse_file() -> None:
    """star uses type S too, with another layout."""
    with pytest.raises(LayerFormatError):
        read(header(b"f", b"S") + END)


def test_endless_maps_are_refused() -> None:
    """A map of 1.0 without newlines, and an old one that is always extended, stop at a megabyte."""
    tar = pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")) + header(b"f", size=3 << 20) + b"1" * (3 << 20)
    with pytest.raises(LayerFormatError, match="map"):
        read(tar)
    block = header(b"f", b"S", magic=GNU, extra={482: b"\1", 483: b"00000000000\0"})
    extension = (bytes(504) + b"\1").ljust(512, b"\0")
    with pytest.raises(LayerFormatError, match="map"):
        read(block + extension * 3000)
