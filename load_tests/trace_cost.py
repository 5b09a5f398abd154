"""What it costs to record a start: starts with recording on and off, in turns, and what one recorded range takes.

Two nodes, each with a containerd of its own, one of which records. The image is pulled, mounted and started on both, in
turns, with the node cache's files in memory and without prefetch: the shortest start that there is, in which the cost
of recording has its largest share. A start is measured from the begin of the pull to the line in which the program says
that it is ready; also the CPU time of the node's daemon until the image is removed again, which ends the recording.

    .venv/bin/python load_tests/trace_cost.py [--image LAYOUT] [--rounds 9] [--json FILE]
    .venv/bin/python load_tests/trace_cost.py --only-ranges

Needs root, but for ``--only-ranges``. The image is that of the demo unless ``--image`` names an OCI layout with a tag
v1, whose program prints a line that begins with "started", and one that begins with "ready".
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("tests", "deploy/demo")]

from build_image import build
from fakes.layers import Content, layers
from harness.containerd import SNAPSHOTTER
from harness.oci import Image
from harness.stack import Stack
from harness.starts import READY, pull, remove, run_container
from mounted import fill_memory
from report import Report, main

from fastpull.cache.digest import Digest
from fastpull.cache.memory_store import MemoryChunkStore
from fastpull.cache.store import Encoding, StoredChunk
from fastpull.fuse_client.device import ChainDevice
from fastpull.fuse_client.fetch.queue import Lane
from fastpull.fuse_client.fetch.waited import Waited
from fastpull.fuse_client.trace import Recorder
from fastpull.image.chain import build_chain
from fastpull.image.chunk_map import ChunkMap

CACHE = Path("/var/cache/fastpull-demo")
WORK = Path("/var/lib")  # a real disk
ON, OFF = "on", "off"
CHUNKS, CHUNK_BYTES = 8192, 64
GOAL_PERCENT = 2.0
MOST_FILLS = 5  # starts; readahead may find something to fetch also in the second


class RecordedNode:
    """One of the two nodes."""

    def __init__(self, stack: Stack, image: str) -> None:
        self.stack, self.image = stack, image
        self.seconds: list[float] = []
        self.cpu: list[float] = []

    def start(self) -> None:
        """Measure one start. The image is gone from containerd afterwards, and its mount with it."""
        busy = self._cpu()
        began = time.monotonic()
        pull(self.stack.containerd, self.image, SNAPSHOTTER)
        lines = run_container(self.stack.containerd, self.image, SNAPSHOTTER)
        self.seconds.append(lines[READY][0] - began)
        remove(self.stack.containerd, self.image)
        self.cpu.append(self._cpu() - busy)

    def fill(self) -> None:
        """Have all that a start needs in the node cache, and that in memory."""
        for _ in range(MOST_FILLS):
            asked = self.stack.node.status()["fetch"]["requests"]
            self.start()
            if self.stack.node.status()["fetch"]["requests"] == asked:
                break
        fill_memory(self.stack.node)
        self.seconds.clear()
        self.cpu.clear()

    def _cpu(self) -> float:
        """Of all threads of the daemon, in seconds."""
        tasks = Path(f"/proc/{self.stack.node.process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def measure(report: Report, args: argparse.Namespace) -> None:
    range_ns = _ranges(report)
    if args.only_ranges:
        return
    layout = args.image or build(args.cache)
    root = Path(tempfile.mkdtemp(prefix="fpt", dir=args.work))
    try:
        with contextlib.ExitStack() as stack:
            nodes: dict[str, RecordedNode] = {}
            first: Stack | None = None
            for name in (ON, OFF):
                settings = "[prefetch]\nenabled = false\n"
                settings += f"[trace]\nenabled = {json.dumps(name == ON)}\nsettle_seconds = 3600.0\n"
                shared = {} if first is None else {"registry": first.registry, "proxy": first.proxy}
                parts = stack.enter_context(Stack(root / name, node_settings=settings, **shared))  # type: ignore[arg-type]  # keywords
                if first is None:
                    first = parts
                    image = first.registry.push(Image(layout, "v1", manifest_digest="", layers=()), "load/ai:v1")
                    first.proxy.warm(image, seconds=3600)
                nodes[name] = RecordedNode(parts, image)
            for node in nodes.values():
                node.fill()
            try:
                for number in range(1, args.rounds + 1):
                    for name in (ON, OFF) if number % 2 else (OFF, ON):
                        nodes[name].start()
                    said = {name: round(node.seconds[-1], 3) for name, node in nodes.items()}
                    print(f"  round {number}: {said}", file=sys.stderr, flush=True)
            finally:
                told = json.loads(nodes[ON].stack.node.command("report", "--json"))
                _tell(report, nodes[ON], nodes[OFF], int(told["used_chunks"]), range_ns)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _tell(report: Report, on: RecordedNode, off: RecordedNode, ranges: int, range_ns: float) -> None:
    pairs = min(len(on.seconds), len(off.seconds))
    if not pairs:
        return
    start = statistics.median(off.seconds[:pairs])
    report.add("start_recorded_s", statistics.median(on.seconds[:pairs]), "s, median")
    report.add("start_unrecorded_s", start, "s, median")
    report.add("start_spread_percent", 100 * _spread(off.seconds[:pairs]) / start, "%, half of the starts")
    extra = [a - b for a, b in zip(on.seconds, off.seconds, strict=False)]
    report.add("trace_cost_percent", 100 * statistics.median(extra) / start, "% of a start", at_most=GOAL_PERCENT)
    best = min(off.seconds)
    report.add("trace_cost_of_best_percent", 100 * (min(on.seconds) - best) / best, "% of the shortest start")
    extra = [a - b for a, b in zip(on.cpu, off.cpu, strict=False)]
    report.add("trace_cpu_ms", 1000 * statistics.median(extra), "ms of the daemon")
    report.add("trace_cpu_percent", 100 * statistics.median(extra) / start, "% of a start", at_most=GOAL_PERCENT)
    report.add("recorded_ranges", ranges, "chunks")
    # The same by calculation: no other work of the machine is in it.
    percent = 100 * ranges * range_ns / 1e9 / start
    report.add("trace_cost_computed_percent", percent, "% of a start", at_most=GOAL_PERCENT)


def _spread(values: Sequence[float]) -> float:
    """Between the quartiles."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4)
    return high - low


# -- one range -------------------------------------------------------------------------------------------


def _ranges(report: Report) -> float:
    """ns that recording adds to the first read of a range, at worst: touched, timed and fetched."""
    content = Content(CHUNK_BYTES)
    data = b"".join(number.to_bytes(8, "little") * (CHUNK_BYTES // 8) for number in range(CHUNKS))
    built = build_chain(layers([content.file(b"file", data)]))
    pieces = ChunkMap.open(built.chunk_map)
    store = MemoryChunkStore(quota_bytes=1 << 30)
    store.put_many([(chunk, StoredChunk(Encoding.RAW, len(raw), raw)) for chunk, raw in content.chunks.items()])

    def reads(recorded: bool) -> None:
        device = ChainDevice(Digest("ab" * 32), pieces, store, None, None)  # type: ignore[arg-type]  # all is local
        if recorded:
            device.observer = Recorder("chain", pieces)
        for index in range(CHUNKS):
            device.try_read(pieces.offset_at(index), CHUNK_BYTES, _take)

    off = _ns(lambda: reads(recorded=False))
    on = _ns(lambda: reads(recorded=True))
    report.add("first_read_unrecorded_ns", off, "ns, all local")
    report.add("first_read_recorded_ns", on, "ns, all local")
    ids = [pieces.id_at(index) for index in range(CHUNKS)]
    some = Waited(fetch=0.01)

    def each(call: Callable[[Recorder, int], None]) -> float:
        def once() -> None:
            recorder = Recorder("chain", pieces)
            for index in range(CHUNKS):
                call(recorder, index)

        return _ns(once)

    touched = each(lambda recorder, index: recorder.touched(index))
    waited = each(lambda recorder, index: recorder.waited(index, 1, some))
    arrived = each(lambda recorder, index: recorder.arrived(ids[index], Lane.DEMAND, 100, 200))
    report.add("record_touch_ns", touched, "ns")
    report.add("record_wait_ns", waited, "ns")
    report.add("record_arrival_ns", arrived, "ns")
    total = touched + waited + arrived
    report.add("record_range_ns", total, "ns, all three")
    recorder = Recorder("chain", pieces)
    for index in range(CHUNKS):
        recorder.touched(index)
        recorder.waited(index, 1, some)
    began = time.perf_counter()
    recorder.finish("settled", node="n")
    recorder.record("settled", range(CHUNKS))
    ended = (time.perf_counter() - began) * 1e9 / CHUNKS
    report.add("record_end_ns", ended, "ns a range, at the end")
    return total


def _take(_buffers: object) -> None:
    pass


def _ns(once: Callable[[], None], rounds: int = 7) -> float:
    """For each of ``CHUNKS``, at best: the rest is other work of the machine."""
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        once()
        taken.append(time.perf_counter() - began)
    return min(taken) * 1e9 / CHUNKS


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only-ranges", action="store_true", help="no starts")
    parser.add_argument("--image", type=Path, metavar="LAYOUT", help="an OCI image layout, instead of the demo's image")
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="where the demo's image is kept (default %(default)s)"
    )
    parser.add_argument("--work", type=Path, default=WORK, help="where all happens, on a disk (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="of a start with and one without (default %(default)s)")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # through every clean-up
    main("cost of recording a start", measure, parser)
