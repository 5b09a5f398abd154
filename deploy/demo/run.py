"""The demo: one real AI image, started through overlayfs and through fastpull, each from empty caches.

Everything is private and temporary: a registry, the proxy, the node daemon and a containerd beside any that
runs here; all of it is ended and unmounted afterwards, also on Ctrl-C. Needs root. The image itself (some
3.4 GB, and as much in downloaded packages) is kept in ``--cache`` for the next run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

# The image builder beside this file, and the harness that the tests use.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2] / "tests")]

from build_image import build
from harness.containerd import SNAPSHOTTER
from harness.lab import drop_page_cache
from harness.oci import Image
from harness.processes import run
from harness.stack import Stack
from harness.starts import Start, disk_bytes, received_bytes, start

CACHE = Path("/var/cache/fastpull-demo")
WORK = Path("/var/lib")  # a real disk; /tmp may live in memory
console = Console(width=None if sys.stdout.isatty() else 110)


@dataclass(frozen=True)
class Row:
    name: str
    start: Start
    transferred: int
    on_disk: int


def measure(name: str, stack: Stack, image: str, snapshotter: str) -> Row:
    """One start from an empty page cache, and what it moved and left on the node."""
    console.print(f"[bold]{name}[/] …", end=" ")
    drop_page_cache()
    kept = 0

    def look() -> None:
        nonlocal kept
        kept = disk_bytes(stack.containerd.data, stack.node.data)

    before = disk_bytes(stack.containerd.data, stack.node.data)
    with received_bytes() as received:
        taken = start(stack.containerd, image, snapshotter, before_removal=look)
    console.print(f"ready after {taken.ready:.1f} s")
    console.print(f"  [dim]{taken.says}[/]")
    return Row(name, taken, received[0], kept - before)


def demonstrate(work: Path, layout: Path, tag: str) -> list[Row]:
    rows: list[Row] = []
    with Stack(work) as stack:
        console.print("pushing the image to the private registry …")
        image = stack.registry.push(Image(layout, tag, manifest_digest="", layers=()), "demo/ai:v1")
        # overlayfs straight from the registry, as without us: the proxy must not have seen the image afterwards.
        stack.containerd.set_mirror(stack.registry.host, None)
        rows.append(measure("overlayfs", stack, image, "overlayfs"))
        stack.containerd.set_mirror(stack.registry.host, stack.proxy.url)
        rows.append(measure("fastpull, first in the cluster", stack, image, SNAPSHOTTER))
        empty_node(stack)
        run_plan(stack, image, "drop")
        rows.append(measure("fastpull, new node", stack, image, SNAPSHOTTER))
        empty_node(stack)
        rows.append(measure("fastpull, new node, with plan", stack, image, SNAPSHOTTER))
    return rows


def empty_node(stack: Stack) -> None:
    """The same daemon on a node that has nothing; stopping it also sends the trace of the last start."""
    stack.node.stop()
    shutil.rmtree(stack.node.data, ignore_errors=True)
    stack.node.start()


def run_plan(stack: Stack, image: str, action: str) -> None:
    run(sys.executable, "-P", "-m", "fastpull.proxy", "plan", action, "--proxy", stack.proxy.url, image)


def print_table(rows: list[Row]) -> None:
    table = Table(title="from an empty page cache to ready")
    for column in ("", "pulled", "started", "ready", "transferred", "on disk", "times"):
        table.add_column(column, justify="left" if not column else "right")
    baseline = rows[0].start.ready
    for row in rows:
        table.add_row(
            row.name,
            *(f"{seconds:.1f} s" for seconds in (row.start.pulled, row.start.started, row.start.ready)),
            *(f"{size / 1e6:,.0f} MB" for size in (row.transferred, row.on_disk)),
            f"{baseline / row.start.ready:.1f} x",
        )
    console.print(table)
    console.print(
        "[dim]transferred: all bytes over the loopback, in the second row also those from registry to proxy; "
        "on disk: what the start left on the node[/]"
    )


@contextlib.contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """A short path (unix sockets end after 107 bytes) on a real disk, removed at the end whatever happens."""
    path = Path(tempfile.mkdtemp(prefix="fpd", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def interruptible(work: Callable[[], None]) -> int:
    """SIGTERM ends like Ctrl-C: through every clean-up."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        work()
    except KeyboardInterrupt:
        console.print("\ninterrupted; everything started was ended")
        return 130
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=CACHE, help="where the image is kept (default %(default)s)")
    parser.add_argument("--work", type=Path, default=WORK, help="where the rest happens (default %(default)s)")
    args = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root: it mounts file systems and runs containers")

    def work() -> None:
        layout = build(args.cache)
        with workspace(args.work) as directory:
            print_table(demonstrate(directory, layout, "v1"))

    return interruptible(work)


if __name__ == "__main__":
    sys.exit(main())
