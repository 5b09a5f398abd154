"""An image as one snapshotter shows it to a container, and what can be measured of that."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.lab import drop_page_cache
from harness.mounts import unmount_all_below
from harness.node import Node
from harness.processes import run
from harness.stack import Stack
from harness.starts import NAMESPACE, READY, STARTED, pull, remove, run_container
from harness.waiting import until

from fastpull.cache.digest import Digest, chain_ids

MIB = 1 << 20
LOCAL_SECONDS = 30.0  # for what was read to be in the node cache
LOCAL_ROUNDS = 4

READ = """
import os, sys, time
path, count = sys.argv[1], int(sys.argv[2])
fd, buffer, total = os.open(path, os.O_RDONLY), bytearray(1 << 20), 0
began = time.perf_counter()
while total < count and (got := os.readv(fd, [buffer])):
    total += got
print(total, time.perf_counter() - began)
"""

RANDOM = """
import os, random, sys, time
path, count = sys.argv[1], int(sys.argv[2])
fd = os.open(path, os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
places = random.Random(3).choices(range(os.fstat(fd).st_size // 4096), k=count)
buffer = bytearray(4096)
began = time.perf_counter()
for place in places:
    os.preadv(fd, [buffer], place * 4096)
print(count, time.perf_counter() - began)
"""

_FORGET = """
import os, sys
device = os.lstat(sys.argv[1]).st_dev
for directory, _, names in os.walk(sys.argv[1]):
    for name in names:
        try:
            fd = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
"""


class Mounted:
    """The image of one stack, under one snapshotter, mounted read-write in ``path`` as for a container."""

    def __init__(self, stack: Stack, image: str, snapshotter: str, path: Path) -> None:
        self.stack, self.image, self.snapshotter, self.path = stack, image, snapshotter, path
        self.is_lazy = snapshotter != "overlayfs"
        self.misses = 0
        self._files: list[Path] = []

    @property
    def files(self) -> list[Path]:
        """The four largest."""
        if not self._files:
            find = ["find", self.path, "-xdev", "-type", "f", "-size", "+1M", "-printf", "%s %p\\n"]
            lines = subprocess.run(find, capture_output=True, text=True, check=True).stdout.splitlines()
            by_size = sorted((line.split(" ", 1) for line in lines), key=lambda words: -int(words[0]))
            self._files = [Path(path) for _, path in by_size[:4]]
        return self._files

    def forget_files(self) -> None:
        """Drop the mount's own pages of the largest files; what lies below it stays in memory."""
        if self.is_lazy:  # overlayfs has no pages of its own
            for path in self.files:
                fd = os.open(path, os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)

    def forget_pages(self) -> None:
        """``forget_files`` for all files."""
        if self.is_lazy:
            run(sys.executable, "-I", "-S", "-c", _FORGET, self.path, seconds=900)

    def fill_memory(self) -> None:
        """Read what lies below the mount: the files of the node cache, or the unpacked layers."""
        if self.is_lazy:
            fill_memory(self.stack.node)
        else:
            self.read_everything()

    def read_everything(self) -> float:
        """Seconds for all files, by four readers."""
        began = time.perf_counter()
        command = 'find "$0" -xdev -type f -print0 | xargs -0 -P 4 -n 200 cat > /dev/null'
        run("sh", "-c", command, self.path, seconds=3600)
        return time.perf_counter() - began

    def find(self) -> float:
        """Seconds of ``find -ls``."""
        began = time.perf_counter()
        subprocess.run(["find", self.path, "-xdev", "-ls"], stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - began

    def start(self) -> float:
        """Seconds that the image's program takes to import its packages, in a container."""
        lines = run_container(self.stack.containerd, self.image, self.snapshotter)
        return lines[READY][0] - lines[STARTED][0]

    def first_start(self) -> None:
        """As on every node that has run the image before: what a start reads is known to the proxy."""
        self.start()
        if self.is_lazy:
            node = self.stack.node
            until(lambda: json.loads(node.command("report", "--json"))["ended_by"], "the start has settled", every=2.0)
            until(lambda: not node.status()["traces_waiting"], "the trace is sent")

    def until_local(self) -> None:
        """Wait until everything is in the node cache.

        Chunks are stored behind the backs of their readers. Where the disk is slower than they are, some are not: then
        everything is read once more.
        """

        def all_local() -> bool:
            (chain,) = self._chains()
            return bool(chain["local_chunks"] == chain["chunks"])

        if self.is_lazy:
            for _ in range(LOCAL_ROUNDS - 1):
                with contextlib.suppress(AssertionError):
                    until(all_local, "everything is in the node cache", seconds=LOCAL_SECONDS, every=2.0)
                    break
                drop_page_cache()
                self.read_everything()
            until(all_local, "everything is in the node cache", seconds=LOCAL_SECONDS, every=2.0)
            self.misses = sum(chain["misses"] for chain in self._chains())

    def late_reads(self) -> int:
        """Reads that had to wait for the proxy since ``until_local``."""
        return sum(chain["misses"] for chain in self._chains()) - self.misses if self.is_lazy else 0

    def _chains(self) -> list[dict[str, Any]]:
        return list(self.stack.node.status()["chains"])


def fill_memory(node: Node) -> None:
    """Read the files of its cache."""
    block = bytearray(MIB)
    for path in (node.data / "cache").rglob("*"):
        with contextlib.suppress(FileNotFoundError, IsADirectoryError), path.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass


def timed(script: str, *jobs: tuple[Path, int]) -> float:
    """Units per second of all jobs side by side."""
    running = [
        subprocess.Popen([sys.executable, "-I", "-S", "-c", script, str(path), str(count)], stdout=subprocess.PIPE)
        for path, count in jobs
    ]
    results = [child.communicate()[0].split() for child in running]
    return sum(float(count) for count, _ in results) / max(float(seconds) for _, seconds in results)


def top_chain(layout: Path) -> str:
    """The chainID of the only image in an OCI layout: the name of its snapshot in containerd."""

    def blob(descriptor: dict[str, Any]) -> dict[str, Any]:
        return dict(json.loads((layout / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()))

    (manifest,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    config = blob(blob(manifest)["config"])
    return str(chain_ids(map(Digest.parse, config["rootfs"]["diff_ids"]))[-1])


@contextlib.contextmanager
def mounted(stack: Stack, image: str, chain: str, snapshotter: str, directory: Path) -> Iterator[Mounted]:
    """Pull the image and mount it. At the end it is neither mounted nor in containerd."""
    pull(stack.containerd, image, snapshotter, seconds=3600)
    directory.mkdir()

    def snapshots(*args: str | Path) -> str:
        return stack.containerd.ctr("snapshots", "--snapshotter", snapshotter, *args, namespace=NAMESPACE)

    key = f"load-{snapshotter}"
    snapshots("prepare", key, chain)
    try:
        run("sh", "-c", snapshots("mounts", directory, key))
        yield Mounted(stack, image, snapshotter, directory)
    finally:
        unmount_all_below(directory)
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            snapshots("rm", key)
            remove(stack.containerd, image)


def rounds(
    count: int,
    measure: Callable[[Mounted], float],
    mounts: Sequence[Mounted],
    before: Callable[[Mounted], object] = lambda _: drop_page_cache(),
) -> list[float]:
    """The median for each mount, measured in turns so that the machine's moods hit all alike."""
    taken: list[list[float]] = [[] for _ in mounts]
    for _ in range(count):
        for mount, values in zip(mounts, taken, strict=True):
            before(mount)
            values.append(measure(mount))
    return [statistics.median(values) for values in taken]
