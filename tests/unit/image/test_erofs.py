"""What the writer writes, the reader reads; what nobody wrote, the reader refuses."""

from __future__ import annotations

import contextlib
import mmap
import os
import stat
import struct
from pathlib import Path

import pytest
from fakes.layers import CAPABILITY, Content, device, directory, fifo, hardlink, layers, symlink, whiteout
from fakes.random_trees import trees
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastpull.image.chain import build_chain
from fastpull.image.chunk_map import ChunkMap
from fastpull.image.erofs import layout
from fastpull.image.erofs.reader import Bootstrap, Inode
from fastpull.image.errors import IndexFormatError, LimitExceededError
from fastpull.image.layer_index import Entry, EntryType

_TYPE = {
    EntryType.FILE: stat.S_IFREG,
    EntryType.DIRECTORY: stat.S_IFDIR,
    EntryType.SYMLINK: stat.S_IFLNK,
    EntryType.CHARACTER: stat.S_IFCHR,
    EntryType.BLOCK: stat.S_IFBLK,
    EntryType.FIFO: stat.S_IFIFO,
}


def build(*entries: Entry) -> Bootstrap:
    return Bootstrap.open(build_chain(layers(list(entries))).bootstrap)


def names(bootstrap: Bootstrap, path: bytes) -> list[bytes]:
    inode = bootstrap.lookup(path)
    assert inode is not None
    return [entry.name for entry in bootstrap.listdir(inode)]


def found(bootstrap: Bootstrap, path: bytes) -> Inode:
    inode = bootstrap.lookup(path)
    assert inode is not None
    return inode


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_every_entry_comes_back(data: st.DataObject) -> None:
    """A random tree read back has every path, attribute, target and xattr that the layer has, and no more."""
    content = Content()
    entries = data.draw(trees(content))
    built = build_chain(layers(entries))
    with Bootstrap.open(built.bootstrap) as bootstrap, ChunkMap.open(built.chunk_map) as chunk_map:
        shown = dict(bootstrap.walk())
        by_path = {entry.path: entry for entry in entries}
        assert shown.keys() == {b"", *by_path}
        for path, entry in by_path.items():
            inode = shown[path]
            if entry.type is EntryType.HARDLINK:
                assert inode.nid == shown[entry.link].nid
                entry = by_path[entry.link]
            assert inode.mode == _TYPE[entry.type] | entry.mode
            assert (inode.uid, inode.gid, inode.mtime_ns) == (entry.uid, entry.gid, entry.mtime_ns)
            assert bootstrap.xattrs(inode) == dict(entry.xattrs)
            assert bootstrap.lookup(b"/" + path) == inode
            if entry.type is EntryType.SYMLINK:
                assert bootstrap.readlink(inode) == entry.link
            elif entry.type is EntryType.FILE:
                names = [path, *(e.path for e in entries if e.type is EntryType.HARDLINK and e.link == entry.path)]
                assert (inode.nlink, inode.size) == (len(names), entry.size)
                offset, size = bootstrap.content(inode)
                pieces = chunk_map.pieces(offset, size)
                assert [(piece.chunk_id, piece.size) for piece in pieces] == list(entry.chunk_refs())
            elif entry.type in (EntryType.CHARACTER, EntryType.BLOCK):
                assert inode.rdev == (entry.major, entry.minor)


def test_a_huge_directory_is_found_by_every_name() -> None:
    """50,000 names over many blocks: each is found, what stands between them is not."""
    entries = [directory(b"d"), *(Content().file(b"d/name-%05d" % number) for number in range(50_000))]
    bootstrap = build(*entries)
    parent = found(bootstrap, b"d")
    assert [entry.name for entry in bootstrap.listdir(parent)] == [e.path[2:] for e in entries[1:]]
    for number in range(0, 50_000, 97):
        inode = bootstrap.child(parent, b"name-%05d" % number)
        assert inode is not None
        assert inode.is_file
        assert bootstrap.child(parent, b"name-%05d-" % number) is None
    assert bootstrap.child(parent, b"") is None
    assert bootstrap.child(parent, b"zzz") is None


@pytest.mark.parametrize("length", range(1, 256, 6))
def test_directories_that_just_fill_or_miss_a_block(length: int) -> None:
    """Names of every length, in numbers around what one and two blocks hold."""
    per_block = layout.BLOCK // (layout.DIRENT.size + length)
    for count in {max(per_block + extra, 0) for extra in range(-3, 2)} | {2 * per_block - 1}:
        wanted = [b"%0*d" % (length, number) for number in range(min(count, 10**length))]
        assert names(build(*(directory(name) for name in wanted)), b"") == wanted


def test_names_sort_as_bytes_with_dot_and_dot_dot_among_them() -> None:
    """The kernel bisects over all names, so that ``!`` stands before ``.``."""
    wanted = [b"!", b"+", b"-", b".-", b"..", b"...", b"/"[:0] + b"0", b"\xff"]
    bootstrap = build(*(directory(name) for name in wanted if name != b".."))
    assert names(bootstrap, b"") == [name for name in wanted if name != b".."]
    for name in wanted:
        assert bootstrap.child(bootstrap.inode(bootstrap.root), name) is not None


def test_directories_count_their_subdirectories_and_know_their_parent() -> None:
    bootstrap = build(directory(b"a/b/c"), directory(b"a/d"), Content().file(b"a/f"))
    assert [found(bootstrap, path).nlink for path in (b"", b"a", b"a/b", b"a/d")] == [3, 4, 3, 2]
    assert bootstrap.parent(found(bootstrap, b"a/b")).nid == found(bootstrap, b"a").nid
    assert bootstrap.parent(bootstrap.inode(bootstrap.root)).nid == bootstrap.root


def test_negative_times_survive_the_format() -> None:
    """Trees have none (containerd sets 1970); the writer does not rely on that."""
    from fastpull.image.erofs.writer import write_bootstrap
    from fastpull.image.node import new_directory, new_node
    from fastpull.image.tree import Tree

    root = new_directory(mtime_ns=-1)
    root.children[b"f"] = new_node(fifo(b"f"), -5 * 10**9 - 3, ())
    bootstrap = Bootstrap.open(write_bootstrap(Tree(root), {}, 4096, bytes(32)))
    assert [inode.mtime_ns for _, inode in bootstrap.walk()] == [-1, -5 * 10**9 - 3]


def test_large_xattrs_are_kept_up_to_what_the_format_holds() -> None:
    """Values of 65,535 bytes and 262,148 bytes for a file together; more is an error that says so."""
    large = tuple((b"user.%d" % number, b"v" * 65_500) for number in range(4))
    content = Content()
    bootstrap = build(content.file(b"f", b"data", xattrs=large), content.file(b"g", b"other"))
    assert bootstrap.xattrs(found(bootstrap, b"f")) == dict(large)
    for number in range(2000):
        assert bootstrap.lookup(b"%d" % number) is None
    with pytest.raises(LimitExceededError, match="65535"):
        build(content.file(b"f", xattrs=((b"user.a", b"v" * 65_536),)))
    with pytest.raises(LimitExceededError, match="262148"):
        build(content.file(b"f", xattrs=(*large, (b"user.more", b"v" * 200))))


def test_access_control_lists_keep_their_names() -> None:
    acls = ((b"system.posix_acl_access", b"one"), (b"system.posix_acl_default", b"two"))
    bootstrap = build(directory(b"d", xattrs=acls))
    assert bootstrap.xattrs(found(bootstrap, b"d")) == dict(acls)


def test_device_numbers_beyond_linux_are_an_error() -> None:
    assert found(build(device(b"d", EntryType.BLOCK, 4095, 2**20 - 1)), b"d").rdev == (4095, 2**20 - 1)
    for major, minor in [(4096, 0), (0, 2**20), (-1, 0)]:
        with pytest.raises(LimitExceededError):
            build(device(b"d", EntryType.BLOCK, major, minor))


def test_more_than_16_tib_are_an_error() -> None:
    """Block addresses have 32 bits."""
    from fastpull.image.erofs.writer import write_bootstrap
    from fastpull.image.tree import merge

    tree = merge(layers([directory(b"a")]))
    write_bootstrap(tree, {}, 2**44 - 2 * layout.BLOCK, bytes(32))
    with pytest.raises(LimitExceededError, match="16 TiB"):
        write_bootstrap(tree, {}, 2**44 - layout.BLOCK, bytes(32))


def test_lookup_does_not_follow_symlinks_or_pass_through_files() -> None:
    bootstrap = build(directory(b"d"), Content().file(b"d/f"), symlink(b"l", b"d"))
    assert bootstrap.lookup(b"l/f") is None
    assert bootstrap.lookup(b"d/f/g") is None
    assert bootstrap.lookup(b"//d//f/") is not None
    assert dict(bootstrap.walk(b"d/f")).keys() == {b"d/f"}
    assert dict(bootstrap.walk(b"gone")) == {}


def test_reading_what_an_inode_is_not_is_an_error() -> None:
    bootstrap = build(Content().file(b"f", b"x"), symlink(b"l", b"f"))
    file, link = found(bootstrap, b"f"), found(bootstrap, b"l")
    with pytest.raises(IndexFormatError):
        bootstrap.readlink(file)
    with pytest.raises(IndexFormatError):
        bootstrap.content(link)
    with pytest.raises(IndexFormatError):
        list(bootstrap.listdir(file))


def test_a_bootstrap_is_read_from_a_memory_map_that_can_be_closed(tmp_path: Path) -> None:
    path = tmp_path / "bootstrap"
    path.write_bytes(build_chain(layers([symlink(b"l", b"t")])).bootstrap)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        with Bootstrap.open(mapped) as bootstrap:
            assert bootstrap.readlink(found(bootstrap, b"l")) == b"t"
        with pytest.raises(IndexFormatError):
            Bootstrap.open(memoryview(mapped)[:4096].tobytes() + bytes(1))


def _sample() -> bytes:
    content = Content()
    entries = [
        directory(b"d", xattrs=((b"user.a", b"1"),)),
        *(content.file(b"d/file-%03d" % number, b"%d" % number) for number in range(200)),
        hardlink(b"h", b"d/file-001"),
        symlink(b"s", b"t" * 4095),
        symlink(b"t", b"x"),
        fifo(b"p"),
        content.file(b"c", b"cap", xattrs=(CAPABILITY,)),
        device(b"n", EntryType.CHARACTER, 1, 3),
    ]
    return build_chain(layers(entries, [whiteout(b"gone")])).bootstrap


SAMPLE = _sample()


def read_all(image: bytes) -> int:
    """Touch everything; count the entries."""
    count = 0
    with Bootstrap.open(image) as bootstrap:
        for path, inode in bootstrap.walk():
            count += 1
            bootstrap.xattrs(inode)
            bootstrap.lookup(path)
            if inode.is_symlink:
                bootstrap.readlink(inode)
            elif inode.is_file:
                bootstrap.content(inode)
    return count


def checked(image: bytearray) -> bytes:
    """``image`` with a right checksum: what someone writes who means it."""
    struct.pack_into("<I", image, layout.SUPERBLOCK_OFFSET + 4, layout.checksum(image))
    return bytes(image)


@pytest.mark.fault(
    "hostile input: bootstraps",
    done="bytes changed, also with a checksum that fits",
    promised="read within a bound, or refused",
)
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 2**32), st.integers(0, 255)), min_size=1, max_size=8), st.booleans())
def test_hostile_bytes_raise_index_format_error_and_nothing_else(
    changes: list[tuple[int, int]], in_inodes: bool
) -> None:
    """Any bytes changed, also with a right checksum: all is readable, or the one error says why not."""
    image = bytearray(SAMPLE)
    for position, value in changes:
        if in_inodes:  # where it hurts most: attributes of the first inodes
            position = layout.INODES_OFFSET + position % 2048
        image[position % len(image)] = value
    with contextlib.suppress(IndexFormatError):
        assert read_all(checked(image)) <= 50_000


@pytest.mark.parametrize("length", [0, 1, 1023, 1024, 1152, 1280, 4095, 4096, len(SAMPLE) - 4096, len(SAMPLE) - 1])
def test_cut_bytes_are_refused(length: int) -> None:
    with pytest.raises(IndexFormatError):
        Bootstrap.open(SAMPLE[:length])


@pytest.mark.parametrize(
    "offset", [0, 4, 8, 12, 13, 14, 36, 40, 44, 80, 86, 88], ids=lambda offset: f"superblock+{offset}"
)
def test_a_changed_superblock_is_refused(offset: int) -> None:
    """By its checksum; and where it matters also when the checksum was made to fit."""
    image = bytearray(SAMPLE)
    image[layout.SUPERBLOCK_OFFSET + offset] ^= 0xFF
    with pytest.raises(IndexFormatError):
        Bootstrap.open(bytes(image))
    if offset not in (4, 8):  # the checksum itself, and features that need no understanding
        with pytest.raises(IndexFormatError):
            read_all(checked(image))


def test_a_directory_inside_itself_ends_the_walk() -> None:
    """A loop is met once, then reported."""
    bootstrap = build(directory(b"a"), directory(b"a/b"))
    outer, inner = found(bootstrap, b"a").nid, found(bootstrap, b"a/b").nid
    image = bytearray(build_chain(layers([directory(b"a"), directory(b"a/b")])).bootstrap)
    at = outer * layout.SLOT + layout.INODE.size
    position = image.index(struct.pack("<Q", inner), at)
    struct.pack_into("<Q", image, position, outer)
    with pytest.raises(IndexFormatError, match="two places"):
        read_all(checked(image))


@pytest.mark.parametrize("seed", range(3))
def test_random_bytes_are_refused(seed: int) -> None:
    with pytest.raises(IndexFormatError):
        Bootstrap.open(os.urandom(8192))
