"""A bootstrap as FUSE sees it: numbers, listings, content."""

from __future__ import annotations

import pytest
from fakes.layers import Content, directory, hardlink, layers, symlink

from fastpull.fuse_client.portable.tree import END, ROOT, Tree, place_at, position_of
from fastpull.image.chain import build_chain
from fastpull.image.erofs import layout
from fastpull.image.erofs.reader import Bootstrap
from fastpull.image.errors import IndexFormatError


def tree_of(*entries: object) -> Tree:
    return Tree(Bootstrap.open(build_chain(layers(list(entries))).bootstrap))  # type: ignore[arg-type]


def number_of(tree: Tree, name: bytes, parent: int = ROOT) -> int:
    inode = tree.child(parent, name)
    assert inode is not None
    return tree.number(inode)


def test_the_root_is_one_and_the_others_are_node_numbers() -> None:
    """Each number names one inode, whatever the path to it."""
    tree = tree_of(directory(b"d"), Content().file(b"d/a", b"x"), hardlink(b"d/b", b"d/a"))
    root = tree.inode(ROOT)
    assert tree.number(root) == ROOT
    d = number_of(tree, b"d")
    assert d != ROOT
    assert tree.inode(d).nid == d
    assert number_of(tree, b"a", d) == number_of(tree, b"b", d)
    assert tree.inode(number_of(tree, b"a", d)).nlink == 2


def test_dots_are_found_as_file_servers_look_for_them() -> None:
    tree = tree_of(directory(b"d"), Content().file(b"d/a", b"x"))
    d = number_of(tree, b"d")
    a = number_of(tree, b"a", d)
    assert number_of(tree, b".", a) == a
    assert number_of(tree, b".", d) == d
    assert number_of(tree, b"..", d) == ROOT
    assert number_of(tree, b"..", ROOT) == ROOT
    assert tree.child(d, b"absent") is None


@pytest.mark.parametrize("count", [0, 1, 200, 3000])
def test_every_block_of_a_directory_is_listed_once(count: int) -> None:
    """In EROFS' order, with the dots, and then nothing more."""
    tree = tree_of(directory(b"d"), *(Content().file(b"d/%05d" % n) for n in range(count)))
    d = number_of(tree, b"d")
    names: list[bytes] = []
    block = 0
    while entries := tree.entries(d, block):
        names += [name for name, _ in entries]
        assert tree.is_last(d, block) is not bool(tree.entries(d, block + 1))
        block += 1
    assert names == sorted([b".", b"..", *(b"%05d" % n for n in range(count))])
    assert tree.entries(d, block + 1) == []


@pytest.mark.parametrize("place", [(0, 0), (0, 1), (1, 0), (70_000, 340)])
def test_positions_are_places(place: tuple[int, int]) -> None:
    assert place_at(position_of(*place)) == place


def test_content_links_and_attributes_come_from_the_bootstrap() -> None:
    xattrs = ((b"user.note", b"yes"),)
    tree = tree_of(Content().file(b"f", b"x" * 5000, xattrs=xattrs), symlink(b"l", b"f"))
    assert tree.content(number_of(tree, b"f")).size == 5000
    assert tree.readlink(number_of(tree, b"l")) == b"f"
    assert tree.xattrs(number_of(tree, b"f")) == dict(xattrs)
    assert tree.figures().files == 3
    assert tree.figures().block_bytes == layout.BLOCK


@pytest.mark.parametrize("number", [0, 2, 1 << 40, 2**64 - 1])
def test_numbers_that_were_never_given_out_are_refused(number: int) -> None:
    tree = tree_of(directory(b"d"))
    with pytest.raises(IndexFormatError):
        tree.inode(number)


def test_the_end_is_no_position_of_an_entry() -> None:
    """And 32-bit programs can take it."""
    block, place = place_at(END)
    assert place > layout.BLOCK, "each entry has more than one byte"
    assert block >= 0
    assert END < 2**31
