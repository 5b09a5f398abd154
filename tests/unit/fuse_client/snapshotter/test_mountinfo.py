"""Who still stands on a directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastpull.fuse_client.snapshotter.mountinfo import mounted_below, parse_mountinfo, uses_of

ROOT = "/var/lib/containerd/io.containerd.snapshotter.v1.fastpull"
CHAIN = Path(f"{ROOT}/chains/ab/rootfs")
S = f"{ROOT}/snapshots"
OVERLAY = f"lowerdir={S}/12/fs:{CHAIN},upperdir={S}/13/fs,workdir={S}/13/work,index=off"
MOUNTINFO = f"""\
22 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:40 / {CHAIN} ro - erofs /x/bootstrap ro,user_xattr
41 22 0:50 / /run/c/1/rootfs rw,relatime - overlay overlay rw,{OVERLAY}
42 22 0:51 / /run/c/2/rootfs rw - overlay overlay rw,lowerdir=snapshots/7/fs:snapshots/6/fs,upperdir=/elsewhere/fs
43 22 253:0 {ROOT}/snapshots/20/fs /run/c/3/rootfs rw - ext4 /dev/vda rw
44 22 0:40 / /tmp/look ro - erofs /x/bootstrap ro
45 22 0:52 / /mnt/with\\040space rw - tmpfs tmpfs rw
46 22 0:53 / {ROOT}/snapshots/30/fs/inner rw - tmpfs tmpfs rw
not a line
"""


@pytest.mark.parametrize(
    ("directory", "users"),
    [
        pytest.param(f"{ROOT}/snapshots/12", ["/run/c/1/rootfs"], id="lower"),
        pytest.param(f"{ROOT}/snapshots/13", ["/run/c/1/rootfs"], id="upper"),
        pytest.param(f"{ROOT}/snapshots/7", ["/run/c/2/rootfs"], id="lower-shortened-by-chdir"),
        pytest.param(f"{ROOT}/snapshots/20", ["/run/c/3/rootfs"], id="bind"),
        pytest.param(str(CHAIN), ["/run/c/1/rootfs", "/tmp/look"], id="chain-with-overlay-and-copy"),
        pytest.param(f"{ROOT}/snapshots/1", [], id="prefix-of-a-name"),
        pytest.param(f"{ROOT}/snapshots/99", [], id="nobody"),
    ],
)
def test_every_mount_that_stands_on_a_directory_is_found(directory: str, users: list[str]) -> None:
    assert uses_of(parse_mountinfo(MOUNTINFO), Path(directory)) == users


def test_mounts_beneath_a_directory_are_found() -> None:
    mounts = parse_mountinfo(MOUNTINFO)

    assert mounted_below(mounts, Path(f"{ROOT}/snapshots/30")) == [f"{ROOT}/snapshots/30/fs/inner"]
    assert mounted_below(mounts, Path(f"{ROOT}/snapshots/3")) == []
    assert mounted_below(mounts, Path("/mnt")) == ["/mnt/with space"]


def test_a_line_that_is_none_is_skipped() -> None:
    assert len(parse_mountinfo(MOUNTINFO)) == 8
    assert parse_mountinfo("") == []
