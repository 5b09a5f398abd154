"""containerd's unpacked layers under overlayfs, and our bootstrap in the kernel, are one and the same tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fakes.layers import layers
from fakes.merge_rows import CONTENT, REFUSED_BY_CONTAINERD, ROWS
from harness.containerd import Containerd
from harness.oci import Image, OciLayout, TarEntry
from tools.compare_trees import compare
from tools.mounted_chain import fsck, lay_out, mounted

from fastpull.image.chain import build_chain
from fastpull.image.layer_index import Entry, EntryType

pytestmark = [
    pytest.mark.root,
    pytest.mark.containerd,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("containerd") is None, reason="needs root and containerd"),
]

# Snapshots that nothing refers to stay until the end.
_NO_GARBAGE_COLLECTION = """
[plugins."io.containerd.gc.v1.scheduler"]
  deletion_threshold = 0
  mutation_threshold = 1000000
  schedule_delay = "10h"
  startup_delay = "10h"
"""
_FLAGS = {
    EntryType.DIRECTORY: tarfile.DIRTYPE,
    EntryType.SYMLINK: tarfile.SYMTYPE,
    EntryType.HARDLINK: tarfile.LNKTYPE,
    EntryType.CHARACTER: tarfile.CHRTYPE,
    EntryType.BLOCK: tarfile.BLKTYPE,
    EntryType.FIFO: tarfile.FIFOTYPE,
}
# One file more on top: a device 0:0 in the only layer is no whiteout until something is stacked on it, as a
# container always is.
_TOP = CONTENT.file(b"on top", b"of all")


def chain_of(contents: Sequence[list[Entry]]) -> list[list[Entry]]:
    return [*contents, [_TOP]]


def tar_entry(entry: Entry) -> TarEntry:
    parent, _, name = entry.path.rpartition(b"/")
    path = entry.path
    if entry.type is EntryType.WHITEOUT:
        path = os.path.join(parent, b".wh." + name)
    elif entry.type is EntryType.OPAQUE:
        path = os.path.join(path, b".wh..wh..opq")
    info = tarfile.TarInfo(os.fsdecode(path) or ".")
    info.type = _FLAGS.get(entry.type, tarfile.REGTYPE)
    info.mode, info.uid, info.gid = entry.mode, entry.uid, entry.gid
    info.linkname, info.devmajor, info.devminor = os.fsdecode(entry.link), entry.major, entry.minor
    info.mtime = entry.mtime_ns // 10**9
    if entry.mtime_ns % 10**9:
        info.pax_headers["mtime"] = f"{entry.mtime_ns // 10**9}.{entry.mtime_ns % 10**9:09}"
    for key, value in entry.xattrs:
        info.pax_headers["SCHILY.xattr." + os.fsdecode(key)] = os.fsdecode(value)
    content = CONTENT.of(entry) if entry.type is EntryType.FILE else b""
    info.size = len(content)
    return TarEntry(info, content)


class Unpacked:
    """Every row's image, unpacked by one containerd."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.containerd = Containerd(folder / "containerd", extra_settings=_NO_GARBAGE_COLLECTION)
        self.images: dict[str, Image] = {}
        self.began_ns = time.time_ns()

    def unpack(self) -> None:
        layout = OciLayout(self.folder / "layout")
        for row in ROWS:
            if row.id not in REFUSED_BY_CONTAINERD:
                tars = [[tar_entry(entry) for entry in entries] for entries in chain_of(row.values[0])]
                number = len(self.images)
                blobs = [layout.add_layer(entries, compression="none") for entries in tars]
                self.images[row.id] = layout.add_image(f"row{number}", blobs)
        archive = self.folder / "layout.tar"
        with tarfile.open(archive, "w") as tar:
            tar.add(layout.root, arcname=".")
        self.containerd.ctr("images", "import", "--snapshotter", "overlayfs", archive)

    def mount(self, row: str, at: Path) -> None:
        chain = str(self.images[row].chain_ids[-1])
        number = list(self.images).index(row)
        snapshots = ("snapshots", "--snapshotter", "overlayfs")
        self.containerd.ctr(*snapshots, "view", f"view{number}", chain)
        command = self.containerd.ctr(*snapshots, "mounts", at, f"view{number}")
        subprocess.run(command, shell=True, check=True, timeout=60)


@pytest.fixture(scope="module")
def unpacked() -> Iterator[Unpacked]:
    folder = Path(tempfile.mkdtemp(prefix="fp-"))  # short, for the sockets
    try:
        unpacked = Unpacked(folder)
        with unpacked.containerd:
            unpacked.unpack()
            yield unpacked
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("row", [row.id for row in ROWS if row.id not in REFUSED_BY_CONTAINERD])
def test_the_tree_is_containerds(row: str, unpacked: Unpacked, tmp_path: Path) -> None:
    """Every entry's type, mode, owner, time, links, xattrs, device number and content.

    Only directories that containerd made or changed without an entry of their own have the time of unpacking.
    """
    contents = next(other.values[0] for other in ROWS if other.id == row)
    bootstrap, device = lay_out(build_chain(layers(*chain_of(contents))), CONTENT.chunks, tmp_path)
    fsck(bootstrap, device)
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    unpacked.mount(row, theirs)
    try:
        with mounted(bootstrap, device, tmp_path / "ours") as ours:
            _, differences = compare(theirs, ours)
    finally:
        subprocess.run(["umount", theirs], check=True, timeout=60)
    assert [str(one) for one in differences if not is_expected(one.field, one.left, one.right, unpacked)] == []


def is_expected(field: str, left: object, right: object, unpacked: Unpacked) -> bool:
    if field == "mtime_ns" and isinstance(left, int):
        return left >= unpacked.began_ns  # the time of unpacking
    return field == "exists" and left == right  # overlayfs lists some whiteouts, but finds nothing there
