"""Reading an image that is in the node cache, with both drivers, beside containerd's overlayfs of the same image.

All are mounted by containerd, read-write as for a container: overlayfs over unpacked layers, and overlayfs over what
our drivers show of the node cache (EROFS over FUSE; pyfuse3). Each driver has a node and a containerd of its own. Three
states of memory:

- cold: the page cache is dropped before each measurement. ``disk`` cases can be no faster than the disk, which is
  measured too; ``find_ls`` and ``import`` without more words are cold, too.
- in memory (``seq_read``, ``random_4k``, ``import_warm_disk``): the node cache's own files, or the unpacked layers, are
  in memory, and only the mount's pages are not.
- ``cached``: the kernel has all of the mount from the measurement before.

Every node has started the image once before, so that the plan is known: ours reads ahead along it (``prefetch.py``).

    .venv/bin/python load_tests/read_path.py [--driver both] [--image LAYOUT] [--json FILE]

Needs root. The image is that of the demo unless ``--image`` names an OCI layout with a tag v1, whose program must print
a line that begins with "started" first, and one that begins with "ready" once it is. Figures of the portable driver
have ``portable`` in their names. A group of cases that fails is told, and the others are measured.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("tests", "deploy/demo")]

from build_image import build
from harness.containerd import SNAPSHOTTER
from harness.lab import drop_page_cache
from harness.oci import Image
from harness.stack import Stack
from mounted import MIB, RANDOM, READ, Mounted, mounted, rounds, timed, top_chain
from report import Report, main

CACHE = Path("/var/cache/fastpull-demo")
WORK = Path("/var/lib")  # a real disk
NODE = '[cache]\nmax_bytes = "30GiB"\n'
EROFS, FUSE, OVERLAYFS = "erofs", "fuse", "overlayfs"


@dataclass
class Bench:
    """What is measured, and the figures side by side as they come."""

    report: Report
    rounds: int
    mounts: dict[str, Mounted]
    table: dict[str, dict[str, float]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)

    @property
    def drivers(self) -> list[str]:
        return [name for name in self.mounts if name != OVERLAYFS]

    def fill_memory(self) -> None:
        """With the node caches and the unpacked layers, and nothing else: all copies of all would not fit."""
        drop_page_cache()
        for mount in self.mounts.values():
            mount.fill_memory()

    def measure(
        self, case: str, what: Callable[[Mounted], float], before: Callable[[Mounted], object] | None = None
    ) -> dict[str, float]:
        """The median for each mount; without ``before`` the page cache is dropped each time."""
        options = (before,) if before is not None else ()
        taken = rounds(self.rounds, what, list(self.mounts.values()), *options)
        self.table[case] = dict(zip(self.mounts, taken, strict=True))
        return self.table[case]

    def add(
        self, case: str, values: dict[str, float], unit: str, *, at_least: float | None = None, targets: str = EROFS
    ) -> None:
        """A row for each mount: ``case`` has a place for the driver in its name. ``targets``: whose has a target."""
        for name, value in values.items():
            infix = {EROFS: "", FUSE: "portable_", OVERLAYFS: "overlayfs_"}[name]
            target = at_least if name == targets else None
            self.report.add(case.format(infix), value, unit, at_least=target)

    def compare(
        self, case: str, values: dict[str, float], *, than: float | None = None, portable: float | None = None
    ) -> None:
        """Ratios of times: to overlayfs (at most ``than`` for EROFS), and of the two drivers (at most ``portable``)."""
        for name in self.drivers:
            infix = "" if name == EROFS else "portable_"
            target = than if name == EROFS else None
            ratio = values[name] / values[OVERLAYFS]
            self.report.add(f"{case}_{infix}vs_overlayfs", ratio, "x the time", at_most=target)
        if EROFS in values and FUSE in values:
            ratio = values[FUSE] / values[EROFS]
            self.report.add(f"{case}_portable_vs_erofs", ratio, "x the time", at_most=portable)

    @contextlib.contextmanager
    def group(self, name: str) -> Iterator[None]:
        """Cases without which the others make sense."""
        try:
            yield
        except (AssertionError, OSError, KeyError, ValueError, subprocess.SubprocessError) as exc:
            self.failed.append(name)
            print(f"{name}: FAILED: {exc}", file=sys.stderr, flush=True)

    def side_by_side(self) -> None:
        names = list(self.mounts)
        print(
            f"\n{'median of ' + str(self.rounds):32}" + "".join(f"{name:>12}" for name in names) + f"{'fuse/erofs':>12}"
        )
        for case, values in self.table.items():
            ratio = f"{values[FUSE] / values[EROFS]:12.2f}" if {EROFS, FUSE} <= values.keys() else ""
            print(f"{case:32}" + "".join(f"{values[name]:12.4g}" for name in names) + ratio)


def disk_gb_s(directory: Path) -> float:
    """What the disk gives to one reader, past the page cache."""
    path = directory / "probe"
    with path.open("wb") as file:
        for _ in range(512):
            file.write(random.randbytes(MIB))
    drop_page_cache()
    rate = timed(READ, (path, 512 * MIB))
    path.unlink()
    return rate / 1e9


def measure(report: Report, args: argparse.Namespace) -> None:
    layout = args.image or build(args.cache)
    drivers = [EROFS, FUSE] if args.driver == "both" else [args.driver]
    directory = Path(tempfile.mkdtemp(prefix="fpr", dir=args.work))
    try:
        with contextlib.ExitStack() as stack:
            first = stack.enter_context(Stack(directory / drivers[0], driver=drivers[0], node_settings=NODE))
            stacks = {drivers[0]: first}
            for name in drivers[1:]:
                parts = Stack(
                    directory / name, registry=first.registry, proxy=first.proxy, driver=name, node_settings=NODE
                )
                stacks[name] = stack.enter_context(parts)
            image = first.registry.push(Image(layout, "v1", manifest_digest="", layers=()), "load/ai:v1")
            chain = top_chain(layout)
            first.proxy.warm(image, seconds=3600)  # else containerd may have to unpack it for our snapshotter too

            def mount(parts: Stack, snapshotter: str, at: str) -> Mounted:
                return stack.enter_context(mounted(parts, image, chain, snapshotter, directory / at))

            mounts = {OVERLAYFS: mount(first, OVERLAYFS, "theirs")}
            mounts |= {name: mount(parts, SNAPSHOTTER, f"ours-{name}") for name, parts in stacks.items()}
            bench = Bench(report, args.rounds, mounts)
            try:
                _measure(bench, args, directory)
            finally:
                bench.side_by_side()
            if bench.failed:
                raise SystemExit(f"not measured, or not to be relied on: {', '.join(bench.failed)}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _measure(bench: Bench, args: argparse.Namespace, directory: Path) -> None:
    lazy = {name: bench.mounts[name] for name in bench.drivers}
    for mount in bench.mounts.values():
        mount.first_start()
    bench.add("fill_node_cache_{}seconds", {name: mount.read_everything() for name, mount in lazy.items()}, "s")
    for mount in lazy.values():
        mount.until_local()
    with bench.group("sequential and random reads"):
        _reads(bench, args, directory)
    with bench.group("find"):
        _find(bench)
    with bench.group("import"):
        _import(bench)
    for name, mount in lazy.items():
        if late := mount.late_reads():
            bench.failed.append(f"{name}, as {late} reads had to wait for the proxy")


def _reads(bench: Bench, args: argparse.Namespace, directory: Path) -> None:
    def sequential(mount: Mounted) -> float:
        return timed(READ, (mount.files[0], args.mib * MIB)) / 1e9

    def streams(mount: Mounted) -> float:
        return timed(READ, *((path, args.mib * MIB // 2) for path in mount.files)) / 1e9

    def random_reads(mount: Mounted) -> float:
        return timed(RANDOM, (mount.files[0], args.reads))

    bench.fill_memory()
    taken = bench.measure("seq_read, GB/s", sequential, Mounted.forget_files)
    bench.add("seq_read_{}gb_s", taken, "GB/s, in memory", at_least=1.5)
    taken = bench.measure("seq_read_4_streams, GB/s", streams, Mounted.forget_files)
    bench.add("seq_read_4_streams_{}gb_s", taken, "GB/s, in memory")
    taken = bench.measure("random_4k, reads/s", random_reads, Mounted.forget_files)
    bench.add("random_4k_{}iops", taken, "reads/s, 1 reader")

    bench.report.add("disk_gb_s", disk_gb_s(directory), "GB/s")
    taken = bench.measure("seq_read_disk, GB/s", sequential)
    bench.add("seq_read_disk_{}gb_s", taken, "GB/s")
    _rates(bench, "seq_read_disk", taken)
    _rates(bench, "random_4k_disk", bench.measure("random_4k_disk, reads/s", random_reads))


def _rates(bench: Bench, case: str, values: dict[str, float]) -> None:
    for name in bench.drivers:
        infix = "" if name == EROFS else "portable_"
        bench.report.add(f"{case}_{infix}vs_overlayfs", values[name] / values[OVERLAYFS], "times as fast")


def _find(bench: Bench) -> None:
    taken = bench.measure("find_ls, cold, s", Mounted.find)
    bench.add("find_ls_{}seconds", taken, "s")
    bench.compare("find_ls", taken, than=1.1, portable=4.0)
    taken = bench.measure("find_ls, cached, s", Mounted.find, Mounted.find)
    bench.add("find_ls_cached_{}seconds", taken, "s")
    bench.compare("find_ls_cached", taken, portable=4.0)


def _import(bench: Bench) -> None:
    taken = bench.measure("import, cold, s", Mounted.start)
    bench.add("import_{}seconds", taken, "s")
    bench.compare("import", taken, than=1.1)
    bench.fill_memory()
    taken = bench.measure("import, cache files in memory, s", Mounted.start, Mounted.forget_pages)
    bench.add("import_warm_disk_{}seconds", taken, "s")
    bench.compare("import_warm_disk", taken)
    for mount in bench.mounts.values():
        mount.start()
    taken = bench.measure("import, cached, s", Mounted.start, lambda _: None)
    bench.add("import_cached_{}seconds", taken, "s")
    bench.compare("import_cached", taken, portable=1.5)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--driver", choices=(EROFS, FUSE, "both"), default="both", help="default: %(default)s")
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
