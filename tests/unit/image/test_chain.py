"""A chain of layers gives a bootstrap and a chunk map that fit together."""

from __future__ import annotations

import pytest
from fakes.layers import Content, directory, hardlink, layer, layers, whiteout
from fakes.random_trees import trees
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastpull.image.chain import build_chain
from fastpull.image.chunk_map import ChunkMap
from fastpull.image.erofs.reader import Bootstrap
from fastpull.image.errors import IndexFormatError
from fastpull.image.layer_index import Entry, EntryType, LayerIndex


def read(layers: list[LayerIndex], content: Content) -> dict[bytes, bytes]:
    """Path → bytes of every file, taken from the device."""
    built = build_chain(layers)
    device = bytearray(built.device_bytes)
    with ChunkMap.open(built.chunk_map) as chunk_map, Bootstrap.open(built.bootstrap) as bootstrap:
        assert chunk_map.device_bytes == bootstrap.device_bytes == built.device_bytes
        assert len(chunk_map) == built.chunks
        for piece in chunk_map.pieces(0, built.device_bytes):
            assert len(content.chunks[piece.chunk_id]) == piece.size
            device[piece.device_offset : piece.device_offset + piece.size] = content.chunks[piece.chunk_id]
        files = {}
        for path, inode in bootstrap.walk():
            if inode.is_file:
                offset, size = bootstrap.content(inode)
                assert offset % 4096 == 0
                files[path] = bytes(device[offset : offset + size])
        return files


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_file_has_its_bytes_on_the_device(data: st.DataObject) -> None:
    content = Content()
    entries = data.draw(trees(content))
    expected = {e.path: content.of(e) for e in entries if e.type is EntryType.FILE}
    expected |= {e.path: expected[e.link] for e in entries if e.type is EntryType.HARDLINK}
    assert read(layers(entries), content) == expected


def test_the_same_layers_give_the_same_bytes() -> None:
    """And another chain with the same tree differs in its name only by what names it."""
    content = Content()
    entries = [directory(b"d"), content.file(b"d/f", b"data"), content.file(b"g", b"more")]
    assert build_chain(layers(entries)) == build_chain(layers(list(entries)))
    one, other = build_chain([layer(*entries, number=1)]), build_chain([layer(*entries, number=2)])
    assert one.chunk_map == other.chunk_map
    with Bootstrap.open(one.bootstrap) as a, Bootstrap.open(other.bootstrap) as b:
        assert a.uuid != b.uuid
        assert a.device_name != b.device_name


def test_every_prefix_of_a_chain_can_be_built() -> None:
    content = Content()
    whole = layers([content.file(b"a", b"1")], [content.file(b"b", b"2")], [whiteout(b"a")])
    assert [sorted(read(whole[:length], content)) for length in range(4)] == [[], [b"a"], [b"a", b"b"], [b"b"]]


def test_a_hundred_layers_merge() -> None:
    content = Content()
    whole = [
        layer(
            directory(b"all", mtime_ns=number),
            content.file(b"all/%d" % number, b"%d" % number),
            content.file(b"last", b"%d" % number),
            number=number,
        )
        for number in range(100)
    ]
    files = read(whole, content)
    assert files[b"last"] == b"99"
    assert files.keys() == {b"last", *(b"all/%d" % number for number in range(100))}


def test_the_same_content_stands_on_the_device_once() -> None:
    """Whatever the names; an empty file takes no place at all."""
    content = Content()
    same = b"x" * 10_000
    built = build_chain(
        layers(
            [
                content.file(b"a", same),
                content.file(b"b", same),
                hardlink(b"c", b"a"),
                content.file(b"d", b"other"),
                content.file(b"e"),
            ]
        )
    )
    assert built.content_bytes == 10_005
    assert built.device_bytes == 4 * 4096
    assert built.entries == 6
    with Bootstrap.open(built.bootstrap) as bootstrap:
        extents = {path: bootstrap.content(inode) for path, inode in bootstrap.walk() if path}
    assert extents == {b"a": (0, 10_000), b"b": (0, 10_000), b"c": (0, 10_000), b"d": (12_288, 5), b"e": (0, 0)}


def test_neighbours_in_the_tree_are_neighbours_on_the_device() -> None:
    """Files stand in the order of the tree, not of the layers that brought them."""
    content = Content()
    built = build_chain(
        layers([content.file(b"b/y", b"by"), content.file(b"a/x", b"ax")], [content.file(b"a/z", b"az")])
    )
    with Bootstrap.open(built.bootstrap) as bootstrap:
        files = [(bootstrap.content(inode).offset, path) for path, inode in bootstrap.walk() if inode.is_file]
    assert [path for _, path in sorted(files)] == [b"a/x", b"a/z", b"b/y"]


def test_a_chain_without_content_still_has_a_device() -> None:
    """Every bootstrap is mounted the same way, and a device of no bytes can not be opened everywhere."""
    built = build_chain(layers([directory(b"d")]))
    assert (built.device_bytes, built.content_bytes, built.chunks, built.entries) == (4096, 0, 0, 2)


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param(Entry(b"f", EntryType.FILE, size=5), id="no-chunks"),
        pytest.param(Entry(b"f", EntryType.FILE, size=5, chunks=b"x" * 32 + (4).to_bytes(4, "little")), id="too-few"),
        pytest.param(Entry(b"f", EntryType.FILE, size=5, chunks=b"x" * 32 + (6).to_bytes(4, "little")), id="too-many"),
        pytest.param(Entry(b"f", EntryType.FILE, size=5, chunks=b"x" * 35), id="cut"),
        pytest.param(
            Entry(b"f", EntryType.FILE, size=5, chunks=b"x" * 32 + (5).to_bytes(4, "little") + b"y" * 32 + bytes(4)),
            id="empty-chunk",
        ),
        pytest.param(
            Entry(b"f", EntryType.FILE, size=2**21, chunks=b"x" * 32 + (2**21).to_bytes(4, "little")), id="huge-chunk"
        ),
    ],
)
def test_a_file_whose_chunks_do_not_add_up_is_refused(entry: Entry) -> None:
    with pytest.raises(IndexFormatError):
        build_chain([layer(entry)])
