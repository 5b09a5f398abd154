"""What pyfuse3 shows of a chain is what the kernel's EROFS shows of it."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.layers import CAPABILITY, Content, device, directory, fifo, hardlink, layers, symlink
from fakes.random_trees import trees
from harness.mounts import unmount_all_below
from harness.portable import portable_mount
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tools.compare_trees import compare
from tools.mounted_chain import lay_out, mounted

from fastpull.image.chain import build_chain
from fastpull.image.layer_index import Entry, EntryType

pytest.importorskip("pyfuse3")

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root"),
]

# user::rwx user:1000:r-x group::r-x mask::r-x other::---
ACL = bytes.fromhex("0200000001000700ffffffff02000500e803000004000500ffffffff10000500ffffffff20000000ffffffff")


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="fpt-", dir="/tmp"))
    yield path
    unmount_all_below(path)
    shutil.rmtree(path)


def numbers(root: Path) -> dict[str, tuple[int, int, int]]:
    """Inode number, blocks and preferred size of every path."""
    found = {}
    for here, directories, files in os.walk(os.fsencode(root)):
        for name in [b"", *directories, *files]:
            path = os.path.join(here, name) if name else here
            info = os.lstat(path)
            found[os.fsdecode(os.path.relpath(path, os.fsencode(root)))] = info.st_ino, info.st_blocks, info.st_blksize
    return found


def assert_same(entries: list[Entry], content: Content, folder: Path) -> None:
    built = build_chain(layers(entries))
    bootstrap, content_device = lay_out(built, content.chunks, folder)
    with (
        mounted(bootstrap, content_device, folder / "erofs") as theirs,
        portable_mount(built, content.chunks, folder) as ours,
    ):
        count, differences = compare(theirs, ours)
        assert [str(difference) for difference in differences] == []
        assert count == len(entries) + 1
        assert numbers(ours) == numbers(theirs)
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_namemax"):
            assert getattr(os.statvfs(ours), field) == getattr(os.statvfs(theirs), field), field


def test_everything_that_a_layer_can_hold(folder: Path) -> None:
    """Path, type, mode, owner, size, time, device, links, xattrs, bytes; numbers and blocks too; then as a user."""
    content = Content()
    xattrs = tuple(sorted([CAPABILITY, (b"user.large", b"v" * 65_000), (b"user.empty", b"")]))
    entries = [
        directory(b"d", mode=0o3775, uid=4_000_000_000, gid=70_000, mtime_ns=1_700_000_000_123_456_789),
        content.file(b"d/big", random.Random(1).randbytes(3_000_001), mode=0o4755, mtime_ns=1),
        hardlink(b"d/link", b"d/big", mode=0o4755, mtime_ns=1),
        content.file(b"empty"),
        content.file(b"capable", b"x", xattrs=xattrs),
        content.file(b"acl", b"with an access list", mode=0o600, xattrs=((b"system.posix_acl_access", ACL),)),
        content.file(b"secret", b"x", mode=0o600),
        symlink(b"short", b"d/big"),
        symlink(b"long", b"t" * 4095, mtime_ns=7),
        content.file(b"n" * 255, b"name"),
        content.file(b"\xff\xfe\n", b"no utf-8"),
        device(b"null", EntryType.CHARACTER, 1, 3, mode=0o666),
        device(b"disk", EntryType.BLOCK, 4095, 1_048_575),
        fifo(b"pipe"),
        directory(b"many"),
        *(content.file(b"many/%04d" % n, b"%d" % n) for n in range(1500)),
    ]
    assert_same(entries, content, folder)


def test_permissions_are_those_of_erofs(folder: Path) -> None:
    """Checked by the kernel: modes, access control lists, read-only; setuid files and devices work."""
    content = Content()
    entries = [
        content.file(b"acl", b"listed", mode=0o640, xattrs=((b"system.posix_acl_access", ACL),)),
        content.file(b"secret", b"x", mode=0o600),
        content.file(b"open", b"x", mode=0o644),
        device(b"null", EntryType.CHARACTER, 1, 3, mode=0o666),
    ]
    built = build_chain(layers(entries))
    bootstrap, content_device = lay_out(built, content.chunks, folder)
    script = "for f in acl secret open null; do cat $f >/dev/null 2>&1 && echo $f; done; touch open 2>&1 | tail -c 24"

    def seen_by(user: int, root: Path) -> str:
        done = subprocess.run(
            ["sh", "-c", script], cwd=root, user=user, group=user, extra_groups=[], capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip
        return done.stdout

    folder.chmod(0o755)
    with (
        mounted(bootstrap, content_device, folder / "erofs") as theirs,
        portable_mount(built, content.chunks, folder) as ours,
    ):
        for user in (0, 1000, 1001):
            assert seen_by(user, ours) == seen_by(user, theirs), user
        assert "acl" in seen_by(1000, ours), "the list names this user"
        assert "acl" not in seen_by(1001, ours)
        options = next(line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(ours) in line)
        assert "nosuid" not in options
        assert "nodev" not in options


@settings(deadline=None, max_examples=4, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_trees(data: st.DataObject) -> None:
    content = Content()
    entries = data.draw(trees(content, max_entries=60))
    path = Path(tempfile.mkdtemp(prefix="fpt-", dir="/tmp"))
    try:
        assert_same(entries, content, path)
    finally:
        unmount_all_below(path)
        shutil.rmtree(path)
