"""The kernel's EROFS shows of a bootstrap what our reader shows, and fsck.erofs has nothing to say."""

from __future__ import annotations

import itertools
import os
import random
import stat
import tempfile
from pathlib import Path

import pytest
from fakes.layers import (
    CAPABILITY,
    Content,
    device,
    directory,
    fifo,
    hardlink,
    layer,
    layers,
    opaque,
    symlink,
    whiteout,
)
from fakes.random_trees import trees
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tools.mounted_chain import fsck, lay_out, mounted

from fastpull.image.chain import BuiltChain, build_chain
from fastpull.image.erofs.reader import Bootstrap
from fastpull.image.layer_index import EntryType, LayerIndex

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]

View = dict[bytes, tuple[object, ...]]


def kernel_view(root: Path) -> View:
    """Everything that system calls tell about every path."""
    view: View = {}
    top = os.fsencode(root)
    pending = [b""]
    while pending:
        path = pending.pop()
        full = top + b"/" + path if path else top
        info = os.lstat(full)
        xattrs = {
            os.fsencode(name): os.getxattr(full, name, follow_symlinks=False)
            for name in os.listxattr(full, follow_symlinks=False)
        }
        data: object = None
        if stat.S_ISLNK(info.st_mode):
            data = os.readlink(full)
        elif stat.S_ISREG(info.st_mode):
            data = Path(os.fsdecode(full)).read_bytes() if info.st_size else b""
        elif stat.S_ISDIR(info.st_mode):
            names = os.listdir(full)
            data = sorted(names)
            pending.extend(path + b"/" + name if path else name for name in names)
        view[path] = (
            info.st_ino, info.st_mode, info.st_uid, info.st_gid, info.st_size, info.st_mtime_ns, info.st_nlink,
            (os.major(info.st_rdev), os.minor(info.st_rdev)), xattrs, data,
        )  # fmt: skip
    return view


def reader_view(built: BuiltChain, content: bytes) -> View:
    """The same of our reader; ``content`` is the device."""
    view: View = {}
    with Bootstrap.open(built.bootstrap) as bootstrap:
        for path, inode in bootstrap.walk():
            data: object = None
            if inode.is_symlink:
                data = bootstrap.readlink(inode)
            elif inode.is_file:
                offset, size = bootstrap.content(inode)
                data = content[offset : offset + size]
            elif inode.is_directory:
                data = [entry.name for entry in bootstrap.listdir(inode)]
            view[path] = (
                inode.nid, inode.mode, inode.uid, inode.gid, inode.size, inode.mtime_ns, inode.nlink,
                inode.rdev, bootstrap.xattrs(inode), data,
            )  # fmt: skip
    return view


def assert_same(chain: list[LayerIndex], content: Content, folder: Path, *, with_loop: bool = False) -> View:
    built = build_chain(chain)
    bootstrap, device = lay_out(built, content.chunks, folder)
    fsck(bootstrap, device)
    expected = reader_view(built, device.read_bytes())
    with mounted(bootstrap, device, folder / "mnt", with_loop=with_loop) as root:
        shown = kernel_view(root)
    assert shown == expected
    return shown


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_random_trees(data: st.DataObject) -> None:
    """Paths, types, modes, owners, sizes, times, links, device numbers, xattrs, targets and bytes agree."""
    content = Content()
    entries = data.draw(trees(content))
    with tempfile.TemporaryDirectory() as folder:
        shown = assert_same(layers(entries), content, Path(folder))
    assert shown.keys() == {b"", *(entry.path for entry in entries)}


def test_everything_that_a_layer_can_hold(tmp_path: Path) -> None:
    """One of each kind, at the limits of each; stated by the test itself, not by our reader."""
    content = Content()
    big = random.Random(1).randbytes(1_000_001)
    acl = bytes.fromhex("0200000001000700ffffffff02000500e803000004000500ffffffff10000500ffffffff20000500ffffffff")
    xattrs = tuple(sorted([CAPABILITY, (b"user.large", b"v" * 65_000), (b"user.empty", b"")]))
    shown = assert_same(
        layers(
            [
                directory(b"d", mode=0o3770, uid=4_000_000_000, gid=70_000, mtime_ns=1_700_000_000_123_456_789),
                content.file(b"d/big", big, mode=0o4755, mtime_ns=1),
                hardlink(b"d/link", b"d/big", mode=0o4755, mtime_ns=1),
                content.file(b"empty"),
                content.file(b"capable", b"x", xattrs=xattrs),
                content.file(b"acl", b"x", mode=0o755, xattrs=((b"system.posix_acl_access", acl),)),
                symlink(b"short", b"d/big"),
                symlink(b"long", b"t" * 4095, mtime_ns=7),
                content.file(b"n" * 255, b"name"),
                content.file(b"\xff\xfe\n", b"no utf-8"),
                device(b"null", EntryType.CHARACTER, 1, 3),
                device(b"disk", EntryType.BLOCK, 4095, 1_048_575),
                fifo(b"pipe"),
            ]
        ),
        content,
        tmp_path,
    )
    assert shown[b"d"][1:4] == (stat.S_IFDIR | 0o3770, 4_000_000_000, 70_000)
    assert shown[b"d"][5] == 1_700_000_000_123_456_789
    assert shown[b"d/big"] == shown[b"d/link"]
    assert shown[b"d/big"][1] == stat.S_IFREG | 0o4755
    assert shown[b"d/big"][4:7] == (1_000_001, 1, 2)
    assert shown[b"d/big"][9] == big
    assert shown[b"capable"][8] == dict(xattrs)
    assert shown[b"acl"][8] == {b"system.posix_acl_access": acl}
    assert shown[b"long"][9] == b"t" * 4095
    assert shown[b"disk"][7] == (4095, 1_048_575)
    assert stat.S_ISFIFO(shown[b"pipe"][1])  # type: ignore[arg-type]


def test_a_directory_of_50_000_names(tmp_path: Path) -> None:
    """All are listed, and each is found by name."""
    content = Content()
    entries = [directory(b"d"), *(content.file(b"d/%05d-%s" % (n, b"x" * (n % 200))) for n in range(50_000))]
    shown = assert_same(layers(entries), content, tmp_path)
    assert len(shown) == 50_002


def test_directories_around_the_edge_of_a_block(tmp_path: Path) -> None:
    """Whatever is left over in the last block, inline or not, the kernel finds every name."""
    content = Content()
    entries = []
    for length, count in itertools.product((3, 50, 203, 255), (14, 15, 16, 17, 62, 66, 67, 270, 273)):
        folder = b"%d-%d" % (length, count)
        entries += [directory(folder, xattrs=((b"user.x", b"x" * length),))]
        entries += [content.file(folder + b"/%0*d" % (length, number)) for number in range(count)]
    assert_same(layers(entries), content, tmp_path)


def test_a_hundred_layers(tmp_path: Path) -> None:
    """Every kind of change, layer after layer."""
    content = Content()
    chain = []
    for number in range(100):
        changes = [
            directory(b"all", mtime_ns=number),
            content.file(b"all/%d" % number, b"%d" % number * 2000),
            content.file(b"same", b"same"),
            content.file(b"turn") if number % 2 else directory(b"turn"),
        ]
        if number % 3 == 2:
            changes.append(whiteout(b"all/%d" % (number - 1)))
        if number == 50:
            changes.append(opaque(b"all"))
        chain.append(layer(*changes, number=number))
    shown = assert_same(chain, content, tmp_path)
    assert b"all/49" not in shown
    assert b"all/99" in shown


def test_through_loop_devices(tmp_path: Path) -> None:
    """As on kernels that mount no files."""
    content = Content()
    data = random.Random(2).randbytes(300_000)
    shown = assert_same(
        layers([directory(b"d"), content.file(b"d/f", data), symlink(b"l", b"d/f"), content.file(b"g", b"small")]),
        content,
        tmp_path,
        with_loop=True,
    )
    assert shown[b"d/f"][9] == data


def test_an_empty_chain(tmp_path: Path) -> None:
    """A root and nothing else mounts, file-backed and through loop devices."""
    assert list(assert_same([], Content(), tmp_path)) == [b""]
    assert list(assert_same([], Content(), tmp_path, with_loop=True)) == [b""]
