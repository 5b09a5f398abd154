"""A tar becomes headers, content and holes, whatever wrote it and however it arrives."""

import io
import tarfile
from collections.abc import Iterator
from contextlib import suppress

import pytest
from fakes.tars import END, GNU, V7, header, long_name, member, padded, pax, records
from hypothesis import given
from hypothesis import strategies as st

from fastpull.image.errors import LayerFormatError
from fastpull.image.tar_header import TarHeader
from fastpull.image.tar_stream import Hole, read_tar


def members(tar: bytes, piece: int = 1 << 20) -> list[tuple[TarHeader, bytes]]:
    """Every member with its content, holes filled."""
    found: list[tuple[TarHeader, bytearray]] = []
    for event in read_tar(tar[at : at + piece] for at in range(0, len(tar), piece)):
        if isinstance(event, TarHeader):
            found.append((event, bytearray()))
        else:
            found[-1][1].extend(bytes(event.size) if isinstance(event, Hole) else event)
    for head, content in found:
        assert len(content) == head.size
    return [(head, bytes(content)) for head, content in found]


def only(tar: bytes) -> tuple[TarHeader, bytes]:
    (found,) = members(tar)
    return found


@pytest.mark.parametrize("piece", [1, 7, 511, 512, 513, 5000, 1 << 20])
def test_pieces_may_have_any_size(piece: int) -> None:
    tar = (
        pax((b"path", b"long/" + b"n" * 120), (b"mtime", b"1.5"))
        + member(b"x", b"content" * 300)
        + long_name(b"deep/" + b"m" * 200)
        + member(b"y", b"1", magic=GNU)
        + member(b"empty")
        + END
    )
    found = members(tar, piece)
    assert [(head.name, content) for head, content in found] == [
        (b"long/" + b"n" * 120, b"content" * 300),
        (b"deep/" + b"m" * 200, b"1"),
        (b"empty", b""),
    ]
    assert found[0][0].mtime_ns == 1_500_000_000


@pytest.mark.parametrize(
    ("tar", "count"),
    [
        pytest.param(b"", 0, id="nothing"),
        pytest.param(bytes(512), 0, id="one-zero-block"),
        pytest.param(END, 0, id="only-the-end"),
        pytest.param(member(b"a", b"1"), 1, id="no-end-of-archive"),
        pytest.param(member(b"a", b"1") + bytes(512), 1, id="half-an-end"),
        pytest.param(header(b"a", size=1) + b"1", 1, id="no-padding"),
        pytest.param(header(b"a", size=1) + b"1" + bytes(100), 1, id="half-a-padding"),
        pytest.param(member(b"a", b"1") + END + b"anything" * 500, 1, id="something-behind-the-end"),
        pytest.param(member(b"a", b"1") + END + member(b"b", b"2"), 1, id="a-tar-behind-the-end"),
        pytest.param(member(b"a") + pax((b"path", b"b")), 1, id="extension-of-nothing"),
    ],
)
def test_sloppy_ends_are_fine(tar: bytes, count: int) -> None:
    assert len(members(tar)) == count
    assert len(members(tar, 100)) == count


@pytest.mark.parametrize(
    "tar",
    [
        pytest.param(member(b"a", b"1")[:100], id="cut-in-a-header"),
        pytest.param(header(b"a", size=2000) + b"1" * 1999, id="cut-in-a-content"),
        pytest.param(member(b"a") + bytes(512) + member(b"b"), id="one-zero-block-between"),
        pytest.param(member(b"a") + bytes(512) + bytes(100), id="cut-in-the-end"),
        pytest.param(header(b"a", size=b"\xff" * 12), id="negative-size"),
        pytest.param(pax((b"size", b"-1")) + member(b"a"), id="negative-size-by-extension"),
        pytest.param(header(b"x", b"x", size=(1 << 20) + 1) + bytes(2 << 20), id="too-large-an-extension"),
        pytest.param(header(b"x", b"L", size=100) + b"cut", id="cut-in-an-extension"),
        pytest.param(member(b"g", b"not records", b"g") + member(b"a"), id="broken-global-header"),
        pytest.param(b"PK\x03\x04" + bytes(1000), id="a-zip"),
    ],
)
def test_what_is_no_tar_is_refused(tar: bytes) -> None:
    for piece in (1 << 20, 100):
        with pytest.raises(LayerFormatError):
            members(tar, piece)


def test_all_pieces_are_taken_to_the_last() -> None:
    """Whoever hashes the tar on the way sees all of it."""
    taken = []

    def pieces() -> Iterator[bytes]:
        for piece in (member(b"a", b"1"), END, b"behind", b"far behind"):
            taken.append(piece)
            yield piece

    assert len(list(read_tar(pieces()))) == 2
    assert len(taken) == 4


def test_content_is_not_copied() -> None:
    tar = member(b"a", b"content") + END
    view = list(read_tar([tar]))[1]
    assert isinstance(view, memoryview)
    assert view.obj is tar


def test_global_headers_change_nothing() -> None:
    """Go reads them and keeps nothing, and drops what an extension before them said."""
    tar = pax((b"path", b"lost")) + pax((b"uid", b"7"), (b"path", b"nowhere"), flag=b"g") + member(b"a") + END
    head, _ = only(tar)
    assert (head.name, head.uid) == (b"a", 0)


def test_the_last_extension_wins_and_gnu_names_over_pax() -> None:
    tar = pax((b"uid", b"1")) + pax((b"gid", b"2"), (b"path", b"pax"), (b"linkpath", b"pax-link"))
    tar += long_name(b"gnu") + long_name(b"gnu-link", b"K") + header(b"a", b"2", link=b"short") + END
    head, _ = only(tar)
    assert (head.name, head.link, head.uid, head.gid) == (b"gnu", b"gnu-link", 0, 2)


@pytest.mark.parametrize("flag", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_members_without_content_have_none_whatever_their_size_says(flag: bytes) -> None:
    """pax stores hardlinks with the size of their target."""
    found = members(header(b"a", flag, size=700, link=b"b") + member(b"next", b"x") + END)
    assert [(head.name, head.size) for head, _ in found] == [(b"a", 0), (b"next", 1)]


@pytest.mark.parametrize(("name", "flag"), [(b"dir/", b"5"), (b"file", b"0")])
def test_v7_tells_directories_by_a_slash(name: bytes, flag: bytes) -> None:
    assert only(header(name, b"\0", magic=V7) + END)[0].flag == flag


def test_times_keep_their_nanoseconds() -> None:
    times = {b"1700000000.123456789": 1700000000_123456789, b"1.5": 1_500_000_000, b"-1.25": -1_250_000_000}
    times |= {b"3.1234567899999": 3_123456789, b"7": 7_000_000_000, b"7.": 7_000_000_000}
    for text, nanoseconds in times.items():
        assert only(pax((b"mtime", text)) + member(b"a") + END)[0].mtime_ns == nanoseconds


def test_xattrs_are_kept_as_bytes_even_empty_ones() -> None:
    tar = pax((b"SCHILY.xattr.user.z", b"\0\xff=\n"), (b"SCHILY.xattr.user.a", b""), (b"other", b"x")) + member(b"a")
    assert only(tar)[0].xattrs == ((b"user.a", b""), (b"user.z", b"\0\xff=\n"))


@pytest.mark.parametrize(
    "body",
    [
        b"nolength",
        b"6 a=1x",
        b"99 a=b\n",
        b"-6 a=b\n",
        b"7 =abc\n",
        b"6 abc\n",
        b"0 a=b\n",
        b"6_ a=b\n",
        b"13 path=a\0bcd\n",
        records((b"a\0b", b"c")),
        records((b"mtime", b"1.x")),
        records((b"mtime", b"")) + records((b"uid", b"1_0")),
        records((b"gid", b"9223372036854775808")),
        records((b"atime", b"yesterday")),
    ],
)
def test_broken_records_are_refused(body: bytes) -> None:
    with pytest.raises(LayerFormatError):
        members(member(b"x", body, b"x") + member(b"a") + END)


names = st.text(st.characters(blacklist_characters="\0/", blacklist_categories=["Cs"]), min_size=1, max_size=60)
paths = st.lists(names, min_size=1, max_size=5).map("/".join)


@st.composite
def infos(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(draw(paths))
    info.type = draw(st.sampled_from([b"0", b"1", b"2", b"3", b"4", b"5", b"6"]))
    info.mode = draw(st.integers(0, 0o7777))
    info.uid = draw(st.integers(0, 0o7777777))
    info.gid = draw(st.integers(0, 0o7777777))
    info.mtime = draw(st.integers(0, 0o77777777777))
    if info.type in b"12":
        info.linkname = draw(paths)
    elif info.type in b"34":
        info.devmajor, info.devminor = draw(st.integers(0, 4095)), draw(st.integers(0, 0o7777777))
    content = draw(st.binary(max_size=2000)) if info.type == b"0" else b""
    info.size = len(content)
    return info, content


def written(items: list[tuple[tarfile.TarInfo, bytes]], format_: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format_, encoding="utf-8") as tar:
        for info, content in items:
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize(
    "given_times", [(b"mtime",), (b"mtime", b"atime", b"ctime"), (b"mtime", b"ctime"), (b"atime",)]
)
def test_the_times_that_gnu_tar_and_buildkit_write_change_only_the_mtime(given_times: tuple[bytes, ...]) -> None:
    times = {b"mtime": b"1732570000.5", b"atime": b"1732570001.123456789", b"ctime": b"7"}
    tar = pax(*((key, times[key]) for key in given_times)) + member(b"a") + END
    plain = only(member(b"a") + END)[0]
    expected = 1732570000_500000000 if b"mtime" in given_times else plain.mtime_ns
    assert only(tar)[0].mtime_ns == expected


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("off_by", [-1, 1])
def test_a_time_record_of_another_length_than_it_says_is_refused(number: int, off_by: int) -> None:
    lines = [b"%s=1732570000.123456789\n" % key for key in (b"mtime", b"atime", b"ctime")]
    data = b"".join(b"%d %s" % (len(line) + 3 + (index == number) * off_by, line) for index, line in enumerate(lines))
    with pytest.raises(LayerFormatError):
        only(header(b"pax", flag=b"x", size=len(data)) + padded(data) + member(b"a") + END)


@given(st.lists(infos(), max_size=6), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), st.integers(1, 3000))
def test_what_pythons_tarfile_writes_is_read_back(
    items: list[tuple[tarfile.TarInfo, bytes]], format_: int, piece: int
) -> None:
    found = members(written(items, format_), piece)
    assert [
        (h.name, h.flag, h.mode, h.uid, h.gid, h.mtime_ns, h.link, h.major, h.minor, content) for h, content in found
    ] == [
        (
            (i.name + "/" * i.isdir()).encode(),
            i.type,
            i.mode,
            i.uid,
            i.gid,
            i.mtime * 10**9,
            i.linkname.encode(),
            i.devmajor,
            i.devminor,
            content,
        )
        for i, content in items
    ]


@given(st.lists(infos(), max_size=4), st.data())
def test_mutated_tars_are_read_or_refused_the_same_in_any_pieces(
    items: list[tuple[tarfile.TarInfo, bytes]], data: st.DataObject
) -> None:
    """Nothing but LayerFormatError leaves the reader, and how the bytes arrive changes nothing."""
    tar = bytearray(written(items, data.draw(st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(tar) - 1))
        tar[at : at + 1] = data.draw(st.binary(max_size=3))

    def outcome(piece: int) -> object:
        try:
            return members(bytes(tar), piece)
        except LayerFormatError as exc:
            return str(exc)

    first, second = outcome(1 << 20), outcome(data.draw(st.integers(1, 2000)))
    assert first == second or (isinstance(first, str) and isinstance(second, str))


@given(st.binary(max_size=3000))
def test_arbitrary_bytes_raise_nothing_else(data: bytes) -> None:
    with suppress(LayerFormatError):
        members(data)


def test_padding_is_whole_blocks() -> None:
    assert len(padded(b"x")) == 512
