"""What a layer's index says about each member of its tar."""

import io
import random
import tarfile

import pytest
from fakes.tars import END, GNU, header, long_name, member, padded, pax
from hypothesis import given
from hypothesis import strategies as st

from fastpull.cache.digest import ChunkId, chunk_id
from fastpull.image import layer_builder
from fastpull.image.errors import ImageError, LayerFormatError, LimitExceededError, UnsafeEntryError
from fastpull.image.layer_builder import LayerContent, clean, read_layer
from fastpull.image.layer_index import Entry, EntryType
from fastpull.image.limits import LayerLimits

LIMITS = LayerLimits(max_entries=1000, max_path_bytes=4096, max_bytes=1 << 40)


class Kept(dict[ChunkId, bytes]):
    def keep(self, chunk: ChunkId, data: bytes | memoryview) -> None:
        assert chunk_id(data) == chunk
        self[chunk] = bytes(data)

    def content(self, entry: Entry) -> bytes:
        parts = [self[chunk] for chunk, _ in entry.chunk_refs()]
        assert [len(part) for part in parts] == [size for _, size in entry.chunk_refs()]
        return b"".join(parts)


def read(tar: bytes, limits: LayerLimits = LIMITS, piece: int = 1 << 20) -> tuple[LayerContent, Kept]:
    kept = Kept()
    return read_layer((tar[at : at + piece] for at in range(0, len(tar), piece)), kept.keep, limits), kept


def only(tar: bytes) -> Entry:
    (entry,) = read(tar + END)[0].entries
    return entry


def test_each_type_keeps_what_counts_for_it() -> None:
    tar = b"".join(
        [
            member(b"file", b"content", mode=0o4755, uid=1, gid=2, mtime=3),
            header(b"dir/", b"5", mode=0o1777, uid=1, gid=2, mtime=3),
            header(b"link", b"2", link=b"../any/where/", mode=0o644, uid=1, gid=2, mtime=3),
            header(b"hard", b"1", link=b"./dir//file", mode=0o600, uid=1, gid=2, mtime=3),
            header(b"char", b"3", major=4, minor=5, mode=0o666),
            header(b"block", b"4", major=8, minor=0x12345),
            header(b"fifo", b"6", major=4, minor=5),
        ]
    )
    content, kept = read(tar + END)
    chunks = content.entries[0].chunks
    assert kept.content(content.entries[0]) == b"content"
    assert content.content_bytes == 7
    assert content.entries == [
        Entry(b"file", EntryType.FILE, 0o4755, 1, 2, 3_000_000_000, 7, chunks=chunks),
        Entry(b"dir", EntryType.DIRECTORY, 0o1777, 1, 2, 3_000_000_000),
        Entry(b"link", EntryType.SYMLINK, 0o777, 1, 2, 3_000_000_000, link=b"../any/where/"),
        Entry(b"hard", EntryType.HARDLINK, 0o600, 1, 2, 3_000_000_000, link=b"dir/file"),
        Entry(b"char", EntryType.CHARACTER, 0o666, major=4, minor=5),
        Entry(b"block", EntryType.BLOCK, 0o644, major=8, minor=0x12345),
        Entry(b"fifo", EntryType.FIFO, 0o644),
    ]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"a/b", b"a/b"),
        (b"./a/b/", b"a/b"),
        (b"/a/b", b"a/b"),
        (b"//a///b//", b"a/b"),
        (b"a/./b/.", b"a/b"),
        (b"a/../b", b"b"),
        (b"a/.hidden/..b/...", b"a/.hidden/..b/..."),
        (b".", b""),
        (b"./", b""),
        (b"", b""),
        (b"/", b""),
        (b"a/..", b""),
        (b"\xff\x80 \n", b"\xff\x80 \n"),
    ],
)
def test_names_are_cleaned(name: bytes, path: bytes) -> None:
    assert clean(name) == path


@pytest.mark.parametrize("name", [b"..", b"../a", b"./../a", b"a/../../b", b"/../a", b"a/b/../../../etc/passwd"])
@pytest.mark.parametrize("flag", [b"0", b"5", b"2"])
def test_names_that_leave_the_root_are_refused(name: bytes, flag: bytes) -> None:
    with pytest.raises(UnsafeEntryError, match="leaves the root"):
        read(header(name, flag, link=b"x") + END)


@pytest.mark.parametrize("link", [b"../etc/passwd", b"/../etc/passwd", b"a/../../b"])
def test_hardlinks_that_leave_the_root_are_refused(link: bytes) -> None:
    with pytest.raises(UnsafeEntryError):
        read(header(b"a", b"1", link=link) + END)


def test_symlinks_may_point_anywhere() -> None:
    """Inside the container they can not leave it."""
    for target in (b"/etc/passwd", b"../../../..", b"a//b/./", b"\xff"):
        assert only(header(b"a", b"2", link=target)).link == target


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        (b"a/.wh.b", Entry(b"a/b", EntryType.WHITEOUT)),
        (b".wh.b", Entry(b"b", EntryType.WHITEOUT)),
        (b"./a/.wh..hidden", Entry(b"a/.hidden", EntryType.WHITEOUT)),
        (b"a/.wh..wh..opq", Entry(b"a", EntryType.OPAQUE)),
        (b".wh..wh..opq", Entry(b"", EntryType.OPAQUE)),
        (b".wh..wh.plnk", Entry(b".wh.plnk", EntryType.WHITEOUT)),
    ],
)
@pytest.mark.parametrize("flag", [b"0", b"5", b"2", b"7"])
def test_whiteouts_are_told_by_their_name_alone(name: bytes, entry: Entry, flag: bytes) -> None:
    assert only(member(name, b"ignored content" if flag in b"07" else b"", flag)) == entry


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh...", b"a/.wh."])
def test_whiteouts_of_no_name_are_refused(name: bytes) -> None:
    with pytest.raises(UnsafeEntryError):
        read(header(name) + END)


def test_the_root_may_be_a_directory_only() -> None:
    """containerd skips whatever resolves to the root; its time is worth keeping."""
    tar = header(b"./", b"5", mtime=7) + member(b".", b"ignored") + header(b"/", b"2") + header(b"./.", b"X") + END
    content, kept = read(tar)
    assert content.entries == [Entry(b"", EntryType.DIRECTORY, 0o644, mtime_ns=7_000_000_000)]
    assert not kept
    assert content.content_bytes == 0


def test_entries_given_twice_stay_in_order() -> None:
    content, _ = read(member(b"a", b"1") + member(b"a", b"22") + header(b"a", b"5") + END)
    assert [(entry.type, entry.size) for entry in content.entries] == [
        (EntryType.FILE, 1),
        (EntryType.FILE, 2),
        (EntryType.DIRECTORY, 0),
    ]


@pytest.mark.parametrize("flag", [b"7", b"V", b"M", b"D", b"Z"])
def test_types_that_containerd_does_not_unpack_are_refused(flag: bytes) -> None:
    with pytest.raises(LayerFormatError, match="type"):
        read(member(b"a", b"x", flag) + END)


@pytest.mark.parametrize(
    ("number", "owner"),
    [(2**32 - 2, 2**32 - 2), (2**32 + 5, 5), (-1, 0), (2**32 - 1, 0), (-2, 2**32 - 2)],
)
def test_owners_have_32_bits(number: int, owner: int) -> None:
    """As chown takes them; -1 leaves the owner as it was, root."""
    entry = only(pax((b"uid", b"%d" % number), (b"gid", b"%d" % number)) + member(b"a"))
    assert (entry.uid, entry.gid) == (owner, owner)


def test_times_that_do_not_fit_are_1970() -> None:
    assert only(pax((b"mtime", b"99999999999")) + member(b"a")).mtime_ns == 0
    assert only(pax((b"mtime", b"-1.5")) + member(b"a")).mtime_ns == -1_500_000_000
    assert (
        only(pax((b"mtime", b"1700000000.123456789")) + header(b"a", b"2", link=b"b")).mtime_ns == 1700000000_123456789
    )


def test_xattrs_are_checked() -> None:
    assert only(pax((b"SCHILY.xattr.user.a", b"\0")) + member(b"a")).xattrs == ((b"user.a", b"\0"),)
    for key, value in ((b"", b"x"), (b"user." + b"n" * 251, b"x"), (b"user.a", bytes(65537))):
        with pytest.raises(LayerFormatError, match="xattr"):
            read(pax((b"SCHILY.xattr." + key, value)) + member(b"a") + END)


@pytest.mark.parametrize("tar", [header(b"a", b"2"), header(b"a", b"1"), header(b"a", b"1", link=b"/")])
def test_links_to_nothing_are_refused(tar: bytes) -> None:
    with pytest.raises(LayerFormatError):
        read(tar + END)


def test_limits_hold() -> None:
    few = LayerLimits(max_entries=2, max_path_bytes=4096, max_bytes=1 << 20)
    assert len(read(member(b"a") * 2 + END, few)[0].entries) == 2
    for tar in (
        member(b"a") * 3,
        long_name(b"d/" * 2049 + b"f") + header(b"a", magic=GNU),
        pax((b"linkpath", b"l" * 4097)) + header(b"a", b"1"),
        header(b"huge", size=(1 << 20) + 1),
        member(b"a", b"x") + header(b"huge", size=1 << 20),
        pax((b"GNU.sparse.size", b"%d" % (1 << 50)), (b"GNU.sparse.map", b"0,0"), (b"GNU.sparse.numblocks", b"1"))
        + header(b"hole"),
    ):
        with pytest.raises(LimitExceededError):
            read(tar + END, few)
    short = LayerLimits(max_entries=2, max_path_bytes=10, max_bytes=1 << 20)
    with pytest.raises(LimitExceededError, match="max_path_bytes"):
        read(member(b"a" * 11) + END, short)


def test_metadata_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries are held in memory; a few compressed bytes can hold gigabytes of xattrs."""
    monkeypatch.setattr(layer_builder, "MAX_METADATA_BYTES", 3000)
    tar = pax((b"SCHILY.xattr.user.a", b"x" * 1400)) + member(b"a")
    assert len(read(tar * 2 + END)[0].entries) == 2
    with pytest.raises(LimitExceededError, match="xattrs"):
        read(tar * 3 + END)


def test_components_longer_than_file_systems_take_are_refused() -> None:
    with pytest.raises(LayerFormatError, match="255"):
        read(long_name(b"n" * 256) + header(b"a") + END)
    assert len(only(long_name(b"n" * 255 + b"/" + b"m" * 255) + header(b"a")).path) == 511


def test_the_ratio_is_that_of_the_blob() -> None:
    limits = LayerLimits.of_blob(1000, max_entries=1, max_path_bytes=1, max_layer_bytes=10**9, max_ratio=50.0)
    assert limits.max_bytes == 50_000
    limits = LayerLimits.of_blob(1000, max_entries=1, max_path_bytes=1, max_layer_bytes=100, max_ratio=50.0)
    assert limits.max_bytes == 100
    with pytest.raises(LimitExceededError, match="max_ratio"):
        limits.check_bytes(101, "it")


@pytest.mark.parametrize("piece", [700, 100_000, 1 << 20])
def test_large_files_come_in_chunks_whatever_the_pieces(piece: int) -> None:
    files = [random.Random(n).randbytes(size) for n, size in enumerate((0, 16384, 16385, 700_000, 5, 300_000))]
    tar = b"".join(member(b"f%d" % n, data) for n, data in enumerate(files)) + END
    content, kept = read(tar, piece=piece)
    assert [kept.content(entry) for entry in content.entries] == files
    assert content.content_bytes == sum(map(len, files))
    assert content == read(tar)[0]


def test_sparse_and_full_files_share_their_chunks() -> None:
    data = random.Random(1).randbytes(100_000)
    full = bytes(2_000_000) + data + bytes(1_000_000)
    name = (b"GNU.sparse.name", b"sparse")
    size = (b"GNU.sparse.size", b"%d" % len(full))
    tar = (
        pax(name, size, (b"GNU.sparse.map", b"2000000,100000"), (b"GNU.sparse.numblocks", b"1"))
        + header(b"x", size=len(data))
        + padded(data)
        + member(b"full", full)
    )
    content, kept = read(tar + END)
    sparse, plain = content.entries
    assert (sparse.path, sparse.chunks) == (b"sparse", plain.chunks)
    assert kept.content(sparse) == full


trees = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["a", "b", ".c", "d.wh.", "ü", "n" * 110]), min_size=1, max_size=4).map("/".join),
        st.sampled_from([b"0", b"0", b"5", b"2", b"1", b"6", b"3"]),
        st.binary(max_size=100).map(lambda data: data * 400),
    ),
    max_size=8,
)


@given(trees, st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]), st.integers(300, 9000))
def test_random_trees_are_indexed_as_written(tree: list[tuple[str, bytes, bytes]], format_: int, piece: int) -> None:
    file = io.BytesIO()
    expected = []
    with tarfile.open(fileobj=file, mode="w", format=format_) as tar:
        for path, flag, data in tree:
            info = tarfile.TarInfo(path)
            info.type = flag
            info.size = len(data) if flag == b"0" else 0
            info.linkname = "target" if flag in b"12" else ""
            if len(path.encode()) > 100 and format_ == tarfile.USTAR_FORMAT:
                continue
            tar.addfile(info, io.BytesIO(data))
            expected.append((path.encode(), flag, data if flag == b"0" else b"", info.linkname.encode()))
    content, kept = read(file.getvalue(), piece=piece)
    types = {EntryType.FILE: b"0", EntryType.DIRECTORY: b"5", EntryType.SYMLINK: b"2", EntryType.HARDLINK: b"1"}
    types |= {EntryType.FIFO: b"6", EntryType.CHARACTER: b"3"}
    assert [(e.path, types[e.type], kept.content(e), e.link) for e in content.entries] == expected


@pytest.mark.fault(
    "hostile input: tar layers",
    done="random layers with bytes changed",
    promised="read or refused with the reason",
)
@given(trees, st.data())
def test_mutated_layers_raise_image_errors_only(tree: list[tuple[str, bytes, bytes]], data: st.DataObject) -> None:
    tar = bytearray(b"".join(member(path.encode()[:100], content, flag) for path, flag, content in tree) + END)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(tar) - 1))
        tar[at : at + 1] = data.draw(st.binary(max_size=2))

    def outcome(piece: int) -> object:
        try:
            return read(bytes(tar), piece=piece)
        except ImageError as exc:
            return type(exc)

    assert outcome(1 << 20) == outcome(data.draw(st.integers(100, 2000)))
