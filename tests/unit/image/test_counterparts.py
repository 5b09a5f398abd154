"""The same path, the same place in the file, in another image."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

from fakes.layers import Content, directory, layers, symlink

from fastpull.cache.digest import ChunkId, chunk_id
from fastpull.image.chain import build_chain
from fastpull.image.chunk_map import ChunkMap
from fastpull.image.counterparts import Counterparts
from fastpull.image.erofs.reader import Bootstrap
from fastpull.image.file_places import FilePlaces
from fastpull.image.layer_index import Entry

CHUNK = 1000


def data(name: str, size: int) -> bytes:
    return random.Random(name).randbytes(size)


@contextmanager
def built(*entries: Entry) -> Iterator[tuple[Bootstrap, ChunkMap]]:
    chain = build_chain(layers(list(entries)))
    with Bootstrap.open(chain.bootstrap) as bootstrap, ChunkMap.open(chain.chunk_map) as chunks:
        yield bootstrap, chunks


def counterparts(older: list[Entry], newer: list[Entry], *chunks: bytes) -> list[list[ChunkId]]:
    """What stands in the newer image for each chunk with these bytes."""
    with built(*older) as (old, old_chunks), built(*newer) as (new, new_chunks):
        between = Counterparts(old, old_chunks, new, new_chunks)
        return [[new_chunks.id_at(index) for index in between.of(chunk_id(chunk))] for chunk in chunks]


def test_a_rewritten_file_has_other_chunks_at_the_same_places() -> None:
    content = Content(CHUNK)
    old, new = data("old", 3 * CHUNK), data("new", 3 * CHUNK)
    found = counterparts(
        [directory(b"d"), content.file(b"a", b"before it"), content.file(b"d/f", old)],
        [directory(b"d"), content.file(b"d/f", new), content.file(b"z", b"behind it")],
        old[:CHUNK],
        old[2 * CHUNK :],
    )

    assert found == [[chunk_id(new[:CHUNK])], [chunk_id(new[2 * CHUNK :])]]


def test_where_the_cuts_differ_all_that_stands_there_counts() -> None:
    old, new = data("old", 3 * CHUNK), data("new", 3 * CHUNK)
    found = counterparts(
        [Content(3 * CHUNK).file(b"f", old)],
        [Content(CHUNK).file(b"f", new)],
        old,
    )

    assert found == [[chunk_id(new[at : at + CHUNK]) for at in (0, CHUNK, 2 * CHUNK)]]


def test_a_file_that_is_gone_shorter_or_no_file_any_more_has_none() -> None:
    content = Content(CHUNK)
    gone, shorter, link, empty = (data(name, 2 * CHUNK) for name in ("gone", "shorter", "link", "empty"))
    found = counterparts(
        [
            content.file(b"empty", empty),
            content.file(b"gone", gone),
            content.file(b"link", link),
            content.file(b"shorter", shorter),
        ],
        [content.file(b"empty"), symlink(b"link", b"shorter"), content.file(b"shorter", data("new", 500))],
        *(file[CHUNK:] for file in (gone, shorter, link, empty)),
        b"a chunk that the older image never had",
    )

    assert found == [[], [], [], [], []]


def test_a_place_belongs_to_its_file_up_to_the_end_of_its_last_block() -> None:
    content = Content(CHUNK)
    with built(content.file(b"a", data("a", 5000)), content.file(b"b", data("b", 10))) as (bootstrap, _):
        places = FilePlaces.of(bootstrap)
        start = bootstrap.content(bootstrap.lookup(b"a") or bootstrap.inode(bootstrap.root)).offset

        found = places.at(start + 8191)
        assert found is not None
        assert (found.path, found.offset, found.size) == (b"a", start, 5000)
        assert places.at(bootstrap.device_bytes + 4096) is None
