"""The handlers that pyfuse3 calls: what they answer, and that nothing but FUSEError leaves them."""

from __future__ import annotations

import errno
import inspect
import os
import random
import stat
from collections.abc import Coroutine, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from fakes.layers import Content, device, directory, hardlink, layers, symlink

from fastpull.fuse_client.portable.errors import DaemonAwayError, ReadRefusedError
from fastpull.image.chain import build_chain
from fastpull.image.erofs.reader import Bootstrap
from fastpull.image.errors import IndexFormatError
from fastpull.image.layer_index import EntryType

pyfuse3 = pytest.importorskip("pyfuse3")

from fastpull.fuse_client.portable import operations  # noqa: E402 - needs pyfuse3
from fastpull.fuse_client.portable.guard import GUARDED, answered, unanswered  # noqa: E402
from fastpull.fuse_client.portable.operations import TreeOperations  # noqa: E402
from fastpull.fuse_client.portable.tree import ROOT, Tree  # noqa: E402

ROOT_CALLER = SimpleNamespace(uid=0, gid=0, pid=1, umask=0)
USER_CALLER = SimpleNamespace(uid=1000, gid=1000, pid=1, umask=0)
DATA = random.Random(1).randbytes(20_000)


class FakeContent:
    """The device, whose bytes say where they stand."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.asked: list[tuple[int, int]] = []

    async def read(self, offset: int, length: int) -> bytes:
        self.asked.append((offset, length))
        if self.failure is not None:
            raise self.failure
        return bytes((offset + at) % 251 for at in range(length))


@pytest.fixture
def content() -> FakeContent:
    return FakeContent()


@pytest.fixture
def ops(content: FakeContent) -> TreeOperations:
    made = Content()
    entries = [
        directory(b"d", mode=0o2750, uid=5, gid=6, mtime_ns=1_700_000_000_123_456_789),
        made.file(b"d/f", DATA, mode=0o4755, uid=1000, xattrs=((b"user.u", b"2"),)),
        hardlink(b"d/g", b"d/f", mode=0o4755, uid=1000, xattrs=((b"user.u", b"2"),)),
        symlink(b"l", b"d/f"),
        device(b"n", EntryType.CHARACTER, 1, 3),
    ]
    return TreeOperations(Tree(Bootstrap.open(build_chain(layers(entries)).bootstrap)), content)


async def look(ops: TreeOperations, *path: bytes) -> Any:
    number = ROOT
    found = None
    for name in path:
        found = await ops.lookup(number, name, ROOT_CALLER)
        number = found.st_ino
    return found


HANDLERS = [
    name
    for name, member in inspect.getmembers(pyfuse3.Operations, inspect.iscoroutinefunction)
    if not name.startswith("_")
]
OURS = [name for name in HANDLERS if getattr(TreeOperations, name) is not getattr(pyfuse3.Operations, name)]


def test_there_are_handlers() -> None:
    """The tests below walk over something."""
    assert {"lookup", "read", "readdir", "forget"} <= set(OURS) <= set(HANDLERS)


@pytest.mark.parametrize("name", OURS)
def test_every_handler_is_guarded(name: str) -> None:
    assert getattr(getattr(TreeOperations, name), GUARDED)


@pytest.mark.parametrize("name", sorted(set(HANDLERS) - set(OURS)))
async def test_what_is_not_handled_is_refused_by_the_base_class(name: str) -> None:
    """With FUSEError and ENOSYS, whatever it is called with."""
    handler = getattr(pyfuse3.Operations, name)
    arguments = [None] * len(inspect.signature(handler).parameters)
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await handler(*arguments)
    assert caught.value.errno == errno.ENOSYS


def damaged_bootstraps() -> Iterator[bytes]:
    """Right in the first block, which has a checksum, and wrong behind it."""
    made = Content()
    entries = [directory(b"d"), *(made.file(b"d/%d" % n, b"x" * 5000) for n in range(150)), symlink(b"l", b"d")]
    whole = build_chain(layers(entries)).bootstrap
    rng = random.Random(3)
    for _ in range(6):
        image = bytearray(whole)
        for _ in range(200):
            image[rng.randrange(4096, len(image))] ^= 1 << rng.randrange(8)
        yield bytes(image)


def every_call(ops: TreeOperations, number: int) -> list[Coroutine[Any, Any, Any]]:
    return [
        ops.lookup(number, b"17", ROOT_CALLER),
        ops.getattr(number, ROOT_CALLER),
        ops.readlink(number, ROOT_CALLER),
        ops.opendir(number, ROOT_CALLER),
        ops.readdir(number, 0, object()),
        ops.open(number, os.O_RDONLY, ROOT_CALLER),
        ops.read(number, 0, 100),
        ops.getxattr(number, b"user.u", ROOT_CALLER),
        ops.listxattr(number, ROOT_CALLER),
        ops.forget([(number, 1)]),
    ]


async def test_a_damaged_bootstrap_gives_errors_and_no_exceptions(
    content: FakeContent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each handler, on each number, of bootstraps with flipped bits: an answer or FUSEError, nothing else."""
    monkeypatch.setattr(operations.pyfuse3, "readdir_reply", lambda *_: True)
    answers = errors = 0
    for image in damaged_bootstraps():
        try:
            ops = TreeOperations(Tree(Bootstrap.open(image)), content)
        except IndexFormatError:
            continue  # the root is hit: it would not be mounted
        for number in (ROOT, *range(40, len(image) // 32, 31)):
            for call in every_call(ops, number):
                try:
                    await call
                    answers += 1
                except pyfuse3.FUSEError as exc:
                    assert exc.errno in (errno.EIO, pyfuse3.ENOATTR)
                    errors += 1
    assert answers
    assert errors


async def test_attributes_are_those_of_erofs(ops: TreeOperations) -> None:
    """One time for all three, blocks by the size, for ever."""
    f = await look(ops, b"d", b"f")
    assert (f.st_mode, f.st_uid, f.st_nlink, f.st_size) == (stat.S_IFREG | 0o4755, 1000, 2, len(DATA))
    assert (f.st_blocks, f.st_blksize) == (40, 4096)
    assert f.st_ino == (await look(ops, b"d", b"g")).st_ino
    assert min(f.entry_timeout, f.attr_timeout) > 10 * 365 * 86400
    d = await look(ops, b"d")
    assert (d.st_mode, d.st_uid, d.st_gid) == (stat.S_IFDIR | 0o2750, 5, 6)
    assert d.st_mtime_ns == d.st_atime_ns == d.st_ctime_ns == 1_700_000_000_123_456_789
    assert ops._attributes(ops._tree.inode(d.st_ino)._replace(mtime_ns=-1_500_000_000)).st_mtime_ns == -1_500_000_000
    assert (await look(ops, b"n")).st_rdev == os.makedev(1, 3)


async def test_the_roots_handle_is_one_and_its_number_is_its_own(ops: TreeOperations) -> None:
    assert (await ops.lookup(ROOT, b".", ROOT_CALLER)).st_ino == ROOT
    assert (await ops.getattr(ROOT, ROOT_CALLER)).st_ino > ROOT


async def test_a_name_that_is_not_there_is_remembered_as_such(ops: TreeOperations) -> None:
    """For ever: an import looks for each module in many directories."""
    absent = await ops.lookup(ROOT, b"absent", ROOT_CALLER)
    assert absent.st_ino == 0
    assert absent.entry_timeout > 10 * 365 * 86400


@pytest.mark.parametrize("room", [1, 2, 7, 100])
async def test_a_listing_goes_on_where_it_stopped(
    room: int, content: FakeContent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However few entries fit into one answer, each comes once."""
    made = Content()
    entries = [directory(b"d"), *(made.file(b"d/%04d" % n) for n in range(500))]
    ops = TreeOperations(Tree(Bootstrap.open(build_chain(layers(entries)).bootstrap)), content)
    d = (await look(ops, b"d")).st_ino
    names: list[bytes] = []
    position = 0

    def reply(token: list[bytes], name: bytes, _attributes: object, next_id: int) -> bool:
        nonlocal position
        if len(token) == room:
            return False
        token.append(name)
        position = next_id
        return True

    monkeypatch.setattr(operations.pyfuse3, "readdir_reply", reply)
    while True:
        token: list[bytes] = []
        await ops.readdir(d, position, token)
        if not token:
            break
        names += token
    assert names == sorted([b".", b"..", *(b"%04d" % n for n in range(500))])


@pytest.mark.parametrize("directories", [1, 40])
async def test_a_second_walk_reads_nothing_of_the_bootstrap(
    directories: int, content: FakeContent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does the end of a directory: what is not there is not looked for."""
    made = Content()
    names = [b"%02d" % n for n in range(directories)]
    entries = [
        entry for name in names for entry in (directory(name), *(made.file(name + b"/%d" % n) for n in range(200)))
    ]
    tree = Tree(Bootstrap.open(build_chain(layers(entries)).bootstrap))
    ops = TreeOperations(tree, content)
    numbers = [(await look(ops, name)).st_ino for name in names]
    built: list[tuple[int, int]] = []
    build = tree.entries
    monkeypatch.setattr(tree, "entries", lambda *where: built.append(where) or build(*where))
    monkeypatch.setattr(
        operations.pyfuse3, "readdir_reply", lambda token, name, _, next_id: token.append(next_id) or True
    )

    async def walk() -> list[int]:
        found: list[int] = []
        for number in numbers:
            token: list[int] = []
            await ops.readdir(number, 0, token)
            found += token
            end: list[int] = []
            await ops.readdir(number, token[-1], end)
            assert end == []
        return found

    first = await walk()
    assert len(first) == 202 * directories
    blocks = list(built)
    assert all(build(*where) for where in blocks), "none of them is empty"
    assert await walk() == first
    assert built == blocks


@pytest.mark.parametrize(
    ("offset", "size", "expected"),
    [
        (0, 100, 100),
        (len(DATA) - 10, 100, 10),
        (len(DATA), 100, 0),
        (len(DATA) + 5000, 100, 0),
        (0, 1 << 20, len(DATA)),
    ],
)
async def test_reads_end_with_the_file(
    ops: TreeOperations, content: FakeContent, offset: int, size: int, expected: int
) -> None:
    """Nothing behind it is asked for."""
    f = (await look(ops, b"d", b"f")).st_ino
    opened = await ops.open(f, os.O_RDONLY, ROOT_CALLER)
    assert opened.keep_cache
    assert len(await ops.read(opened.fh, offset, size)) == expected
    assert sum(length for _, length in content.asked) == expected


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (ReadRefusedError(errno.EIO, 0, 1), errno.EIO),
        (DaemonAwayError(1.0), errno.EIO),
        (ZeroDivisionError(), errno.EIO),
        (MemoryError(), errno.EIO),
    ],
)
async def test_bytes_that_can_not_be_had_are_an_error_of_that_read(
    ops: TreeOperations, content: FakeContent, failure: Exception, code: int
) -> None:
    f = (await look(ops, b"d", b"f")).st_ino
    content.failure = failure
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await ops.read(f, 0, 10)
    assert caught.value.errno == code
    content.failure = None
    assert len(await ops.read(f, 0, 10)) == 10


async def test_xattrs_are_shown_as_erofs_shows_them(ops: TreeOperations, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trusted ones to root alone; what is not there is ENODATA, so that nobody takes it for unsupported."""
    f = (await look(ops, b"d", b"f")).st_ino
    assert list(await ops.listxattr(f, ROOT_CALLER)) == [b"user.u"]
    monkeypatch.setattr(ops._tree, "xattrs", lambda _number: {b"trusted.t": b"1", b"user.u": b"2"})
    assert list(await ops.listxattr(f, ROOT_CALLER)) == [b"trusted.t", b"user.u"]
    assert list(await ops.listxattr(f, USER_CALLER)) == [b"user.u"]
    assert await ops.getxattr(f, b"user.u", USER_CALLER) == b"2"
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await ops.getxattr(f, b"security.capability", ROOT_CALLER)
    assert caught.value.errno == errno.ENODATA


async def test_a_tree_without_xattrs_says_so_once(ops: TreeOperations, content: FakeContent) -> None:
    """ENOSYS, after which the kernel asks no more; never where one inode has some, nor before all were looked at."""
    await ops.look_for_xattrs()
    assert not ops.is_without_xattrs

    plain = layers([directory(b"d"), *(Content().file(b"d/%d" % n) for n in range(300))])
    other = TreeOperations(Tree(Bootstrap.open(build_chain(plain).bootstrap)), content)
    f = (await look(other, b"d", b"7")).st_ino
    for expected in (errno.ENODATA, errno.ENOSYS):
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await other.getxattr(f, b"trusted.overlay.metacopy", ROOT_CALLER)
        assert caught.value.errno == expected
        await other.look_for_xattrs()
    assert list(await other.listxattr(f, ROOT_CALLER)) == []


async def test_a_damaged_tree_is_not_taken_for_one_without_xattrs(
    ops: TreeOperations, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Iterator[Any]:
        yield ops._tree.inode(ROOT)
        raise IndexFormatError("planned")

    monkeypatch.setattr(ops._tree, "inodes", broken)
    await ops.look_for_xattrs()
    assert not ops.is_without_xattrs


async def test_nothing_can_be_opened_for_writing(ops: TreeOperations) -> None:
    f = (await look(ops, b"d", b"f")).st_ino
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await ops.open(f, os.O_RDWR, ROOT_CALLER)
    assert caught.value.errno == errno.EROFS


async def test_the_guards_let_nothing_else_out() -> None:
    async def fails(code: int) -> int:
        if code:
            raise pyfuse3.FUSEError(code)
        raise KeyError("something")

    with pytest.raises(pyfuse3.FUSEError) as caught:
        await answered(fails)(errno.ENOENT)
    assert caught.value.errno == errno.ENOENT
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await answered(fails)(0)
    assert caught.value.errno == errno.EIO
    assert await unanswered(fails)(0) is None  # type: ignore[arg-type]
    assert await unanswered(fails)(errno.EIO) is None  # type: ignore[arg-type]
