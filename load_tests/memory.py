"""How much memory proxy and node daemon hold with ten images of 20,000 files each.

The proxy ingests all ten and serves their reads; the node mounts all ten and reads a tenth of each. Counted is the
resident set at its largest over the whole run, mapped files included, and what is private of it. The proxy's
ingest workers are processes of their own; they are counted beside it.

    .venv/bin/python load_tests/memory.py [--json FILE]

Needs root.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from harness.images import ImageMaker
from harness.mounts import unmount_all_below
from harness.oci import TarEntry, directory, file
from harness.stack import Stack
from report import Report, main

IMAGES, FILES, LARGE = 10, 20_000, 30
WORK = Path("/var/lib")  # a real disk
MIB = 1 << 20


class Watch:
    """The largest resident set of a process, looked at twice a second, in MiB."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.resident = self.private = 0.0

    def look(self) -> None:
        status = Path(f"/proc/{self._pid}/status").read_text()
        values = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        self.resident = max(self.resident, int(values["VmRSS"].split()[0]) / 1024)
        self.private = max(self.private, int(values["RssAnon"].split()[0]) / 1024)


@contextmanager
def watching(*watches: Watch) -> Iterator[None]:
    over = threading.Event()

    def loop() -> None:
        while not over.wait(0.5):
            for watch in watches:
                watch.look()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def content(number: int) -> list[TarEntry]:
    """Some 120 MB: many small files, and large ones that give 50 chunks each."""
    source = random.Random(number)
    entries = [directory("data")]
    for index in range(FILES):
        if index % 200 == 0:
            entries.append(directory(f"data/{index // 200:03}"))
        entries.append(file(f"data/{index // 200:03}/{index:05}", source.randbytes(2_000)))
    entries += [file(f"data/large-{index}", source.randbytes(3 * MIB)) for index in range(LARGE)]
    return entries


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def resident(pid: int) -> float:
    watch = Watch(pid)
    watch.look()
    return watch.resident


def measure(report: Report, args: argparse.Namespace) -> None:
    directory_ = Path(tempfile.mkdtemp(prefix="fpm", dir=args.work))
    try:
        with Stack(directory_ / "s") as stack:
            maker = ImageMaker(directory_, stack.registry)
            images = [maker.push(content(number)) for number in range(IMAGES)]
            proxy, node = Watch(stack.proxy.process.pid), Watch(stack.node.process.pid)
            with watching(proxy, node):
                for image in images:
                    stack.proxy.warm(image, seconds=600)
                for number, image in enumerate(images):
                    target = directory_ / f"mount-{number}"
                    target.mkdir()
                    stack.node.command("mount", image, target, seconds=300)
                    read_some(target)
            report.add("proxy_rss_mb_10_images", proxy.resident, "MiB at most", at_most=300)
            report.add("proxy_private_mb_10_images", proxy.private, "MiB at most")
            workers = sum(resident(pid) for pid in children(stack.proxy.process.pid))
            report.add("ingest_workers_rss_mb_at_rest", workers, "MiB, all workers")
            report.add("node_rss_mb_10_chains", node.resident, "MiB at most", at_most=150)
            report.add("node_private_mb_10_chains", node.private, "MiB at most")
            report.add("node_rss_mb_at_rest", resident(stack.node.process.pid), "MiB")
            for number in range(IMAGES):
                stack.node.command("umount", directory_ / f"mount-{number}")
    finally:
        unmount_all_below(directory_)
        shutil.rmtree(directory_, ignore_errors=True)


def read_some(mount: Path) -> None:
    """A tenth of the small files and of the large ones."""
    for path in sorted((mount / "data").glob("*/*"))[::10] + sorted((mount / "data").glob("large-*"))[::10]:
        path.read_bytes()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=WORK, help="where it happens (default %(default)s)")
    main("memory of proxy and node", measure, parser)
