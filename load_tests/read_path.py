"""Reading an image that is in the node cache, beside containerd's overlayfs of the same image.

Both are mounted by containerd, read-write as for a container: overlayfs over unpacked layers, and overlayfs over
EROFS over FUSE over the node cache. Before each measurement the page cache is dropped. ``disk`` cases begin with
nothing in memory and can be no faster than the disk, which is measured too; for the others the node cache's own
files, or the unpacked layers, are in memory, and only the mount's pages are not.

    .venv/bin/python load_tests/read_path.py [--image LAYOUT] [--json FILE]

Needs root. The image is that of the demo unless ``--image`` names an OCI layout with a tag v1.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("tests", "deploy/demo")]

from build_image import build
from harness.containerd import SNAPSHOTTER
from harness.oci import Image
from harness.processes import run
from harness.stack import Stack
from harness.starts import NAMESPACE, READY, STARTED, drop_page_cache, pull, run_container
from report import Report, main

from fastpull.cache.digest import Digest, chain_ids

CACHE = Path("/var/cache/fastpull-demo")
WORK = Path("/var/lib")  # a real disk
OURS, THEIRS = SNAPSHOTTER, "overlayfs"
MIB = 1 << 20

_READ = """
import os, sys, time
path, count = sys.argv[1], int(sys.argv[2])
fd, buffer, total = os.open(path, os.O_RDONLY), bytearray(1 << 20), 0
began = time.perf_counter()
while total < count and (got := os.readv(fd, [buffer])):
    total += got
print(total, time.perf_counter() - began)
"""

_RANDOM = """
import os, random, sys, time
path, count = sys.argv[1], int(sys.argv[2])
fd = os.open(path, os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
places = random.Random(3).sample(range(os.fstat(fd).st_size // 4096), count)
buffer = bytearray(4096)
began = time.perf_counter()
for place in places:
    os.preadv(fd, [buffer], place * 4096)
print(count, time.perf_counter() - began)
"""


class Mounted:
    """The image as one snapshotter shows it to a container."""

    def __init__(self, stack: Stack, image: str, snapshotter: str, directory: Path) -> None:
        self.stack, self.image, self.snapshotter = stack, image, snapshotter
        self.path = directory

    def large_files(self, count: int) -> list[Path]:
        found = subprocess.run(
            ["find", self.path, "-xdev", "-type", "f", "-size", "+100M", "-printf", "%s %p\\n"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        return [Path(line.split(" ", 1)[1]) for line in sorted(found, key=lambda line: -int(line.split()[0]))[:count]]

    def forget(self, files: Sequence[Path]) -> None:
        """Drop the pages of the mount, and of nothing else."""
        for path in files:
            fd = os.open(path, os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)

    def read_everything(self) -> float:
        """Seconds for all files, by four readers."""
        began = time.perf_counter()
        run(
            *("sh", "-c", 'find "$0" -xdev -type f -print0 | xargs -0 -P 4 -n 200 cat > /dev/null', str(self.path)),
            seconds=3600,
        )
        return time.perf_counter() - began

    def find(self) -> float:
        began = time.perf_counter()
        subprocess.run(["find", self.path, "-xdev", "-ls"], stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - began

    def start(self) -> float:
        """Seconds that the image's program takes to import its packages, in a container."""
        lines = run_container(self.stack.containerd, self.image, self.snapshotter)
        return lines[READY][0] - lines[STARTED][0]


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
    pull(stack.containerd, image, snapshotter)
    directory.mkdir()

    def snapshots(*args: str | Path) -> str:
        return stack.containerd.ctr("snapshots", "--snapshotter", snapshotter, *args, namespace=NAMESPACE)

    key = f"load-{snapshotter}"
    snapshots("prepare", key, chain)
    try:
        run("sh", "-c", snapshots("mounts", directory, key))
        yield Mounted(stack, image, snapshotter, directory)
    finally:
        run("umount", "--lazy", directory, check=False)
        snapshots("rm", key)


def rounds(count: int, measure: Callable[[Mounted], float], *mounts: Mounted, cold: bool = True) -> list[float]:
    """The median for each mount, measured in turns so that the machine's moods hit all alike."""
    taken: list[list[float]] = [[] for _ in mounts]
    for _ in range(count):
        for mount, values in zip(mounts, taken, strict=True):
            if cold:
                drop_page_cache()
            values.append(measure(mount))
    return [statistics.median(values) for values in taken]


def all_local(parts: Stack, when: str) -> int:
    """Reads of the image that were not local so far. Fails when something still is not."""
    chains = parts.node.status()["chains"]
    for chain in chains:
        if chain["local_chunks"] < chain["chunks"]:
            raise SystemExit(f"{when}, {chain['local_chunks']} of {chain['chunks']} chunks are in the node cache")
    return sum(chain["misses"] for chain in chains)


def disk_gb_s(directory: Path) -> float:
    """What the disk gives to one reader, past the page cache."""
    path = directory / "probe"
    with path.open("wb") as file:
        for _ in range(512):
            file.write(random.randbytes(MIB))
        os.fsync(file.fileno())
    drop_page_cache()
    rate = timed(_READ, (path, 512 * MIB))
    path.unlink()
    return rate / 1e9


def measure(report: Report, args: argparse.Namespace) -> None:
    layout = args.image or build(args.cache)
    directory = Path(tempfile.mkdtemp(prefix="fpr", dir=args.work))
    try:
        with contextlib.ExitStack() as stack:
            parts = stack.enter_context(Stack(directory, node_settings='[cache]\nmax_bytes = "30GiB"\n'))
            image = parts.registry.push(Image(layout, "v1", manifest_digest="", layers=()), "load/ai:v1")
            chain = top_chain(layout)
            theirs = stack.enter_context(mounted(parts, image, chain, THEIRS, directory / "theirs"))
            ours = stack.enter_context(mounted(parts, image, chain, OURS, directory / "ours"))
            _measure(report, args, parts, ours, theirs, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _measure(
    report: Report, args: argparse.Namespace, parts: Stack, ours: Mounted, theirs: Mounted, directory: Path
) -> None:
    report.add("fill_node_cache_seconds", ours.read_everything(), "s")
    misses = all_local(parts, "after every file was read")
    big = {mount: mount.large_files(4) for mount in (ours, theirs)}

    def sequential(mount: Mounted) -> float:
        mount.forget(big[mount])
        return timed(_READ, (big[mount][0], args.mib * MIB)) / 1e9

    def streams(mount: Mounted) -> float:
        mount.forget(big[mount])
        return timed(_READ, *((path, args.mib * MIB // 2) for path in big[mount])) / 1e9

    def random_reads(mount: Mounted) -> float:
        mount.forget(big[mount])
        return timed(_RANDOM, (big[mount][0], args.reads))

    for mount in (ours, theirs):  # the node cache's files, or the layers: into memory
        for path in big[mount]:
            timed(_READ, (path, args.mib * MIB))

    mine, other = rounds(args.rounds, sequential, ours, theirs, cold=False)
    report.add("seq_read_gb_s", mine, "GB/s", at_least=1.5)
    report.add("seq_read_overlayfs_gb_s", other, "GB/s, in memory")
    (mine,) = rounds(args.rounds, streams, ours, cold=False)
    report.add("seq_read_4_streams_gb_s", mine, "GB/s")
    (mine,) = rounds(args.rounds, random_reads, ours, cold=False)
    report.add("random_4k_iops", mine, "reads/s, 1 reader")

    report.add("disk_gb_s", disk_gb_s(directory), "GB/s")
    mine, other = rounds(args.rounds, sequential, ours, theirs)
    report.add("seq_read_disk_gb_s", mine, "GB/s")
    report.add("seq_read_disk_vs_overlayfs", mine / other, "times as fast")
    mine, other = rounds(args.rounds, random_reads, ours, theirs)
    report.add("random_4k_disk_vs_overlayfs", mine / other, "times as fast")
    mine, other = rounds(args.rounds, Mounted.find, ours, theirs)
    report.add("find_ls_seconds", mine, "s")
    report.add("find_ls_vs_overlayfs", mine / other, "x the time", at_most=1.1)
    mine, other = rounds(args.rounds, Mounted.start, ours, theirs)
    report.add("import_seconds", mine, "s")
    report.add("import_vs_overlayfs", mine / other, "x the time", at_most=1.1)
    late = all_local(parts, "at the end") - misses
    if late:
        raise SystemExit(f"{late} reads had to wait for the proxy: the figures above are not of a full node cache")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=Path, metavar="LAYOUT", help="an OCI image layout, instead of the demo's image")
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="where the demo's image is kept (default %(default)s)"
    )
    parser.add_argument("--work", type=Path, default=WORK, help="where all happens, on a disk (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement (default %(default)s)")
    parser.add_argument("--mib", type=int, default=1024, help="read of a large file (default %(default)s)")
    parser.add_argument("--reads", type=int, default=20_000, help="random reads (default %(default)s)")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # through every clean-up
    main("read path", measure, parser)
