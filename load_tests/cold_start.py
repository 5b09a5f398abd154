"""Cold starts of one image over a slow link: containerd's overlayfs, ours, and ours with what was learned.

The registry and the proxy stand behind a shaped link, the node and a private containerd on this side. Before each
run the caches of the case and the page cache are emptied. The cases take turns, so that the machine's moods hit all
alike; medians are told. A start is measured from the begin of the pull to the line in which the program
says that it is ready.

    .venv/bin/python load_tests/cold_start.py [--image REF --next REF] [--bandwidth 1gbit] [--rtt 1ms] [--runs 5]

``--driver both`` adds ``no_plan_portable_s`` and ``plan_portable_s``, the same starts on the portable driver. Figures
are told as they come, and the medians also of runs that end early.

The image is that of the demo, its next tag the same with another version of one package and what depends on it. Any
other image must print a line that begins with "started" first, and one that begins with "ready" once it is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("tests", "deploy/demo")]

from build_image import build
from far_side import FarProxy, FarRegistry, Link, bits_per_second, seconds, shaped_link
from harness.containerd import SNAPSHOTTER, Containerd
from harness.lab import drop_page_cache
from harness.mounts import unmount_all_below
from harness.node import Node
from harness.oci import Image
from harness.processes import run
from harness.starts import NAMESPACE, READY, received_bytes, remove, run_container, until_connected
from harness.waiting import until
from next_tag import next_demo
from report import Report, main

CACHE = Path("/var/cache/fastpull-demo")
WORK = Path("/var/lib")  # a real disk
OVERLAYFS = "overlayfs"
EROFS, FUSE = "erofs", "fuse"
PULL_SECONDS = 3600.0
_OF_A_START = ("requests", "link_bytes", "waited_s", "touched_bytes")


@dataclass
class Lab:
    """Everything that a start goes through."""

    link: Link
    registry: FarRegistry
    proxy: FarProxy
    node: Node
    containerd: Containerd
    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def start(self, image: str, snapshotter: str) -> float:
        """Seconds from the begin of the pull to ready. The image stays in containerd."""
        drop_page_cache()
        began = time.monotonic()
        self.pull(image, snapshotter)
        return run_container(self.containerd, image, snapshotter)[READY][0] - began

    def pull(self, image: str, snapshotter: str) -> None:
        options = ["--hosts-dir", self.containerd.certs, "--snapshotter", snapshotter, image]
        if snapshotter == SNAPSHOTTER:
            self.containerd.ctr_remote("images", "rpull", *map(str, options), namespace=NAMESPACE, seconds=PULL_SECONDS)
        else:
            self.containerd.ctr("images", "pull", *options, namespace=NAMESPACE, seconds=PULL_SECONDS)

    def remove(self, image: str) -> None:
        """The image, and on the way what was learned from its start."""
        remove(self.containerd, image)
        until(lambda: not self.node.status()["traces_waiting"], "the trace is sent")

    def clear(self, *images: str | None) -> None:
        """After a run that broke off."""
        self.containerd.set_mirror(self.registry.host, self.proxy.url)
        for image in filter(None, images):
            with contextlib.suppress(AssertionError, subprocess.SubprocessError):
                remove(self.containerd, image)

    def empty_node(self, driver: str) -> None:
        """The same daemon on a node that has nothing."""
        self.node.stop()
        shutil.rmtree(self.node.data, ignore_errors=True)
        self.node.set_driver(driver)
        self.node.start()
        until_connected(self.containerd, SNAPSHOTTER)

    def drop_plan(self, image: str) -> None:
        run(sys.executable, "-P", "-m", "fastpull.proxy", "plan", "drop", "--proxy", self.proxy.url, image)

    def last_start(self) -> dict[str, Any]:
        return dict(json.loads(self.node.command("report", "--json")))

    # -- the cases -----------------------------------------------------------------------------------

    def overlayfs(self, image: str) -> None:
        """From the registry itself, then once more with the layers unpacked."""
        self.containerd.set_mirror(self.registry.host, self.registry.url)
        try:
            self.values["overlayfs_s"].append(self.start(image, OVERLAYFS))
            drop_page_cache()
            began = time.monotonic()
            lines = run_container(self.containerd, image, OVERLAYFS)
            self.values["local_s"].append(lines[READY][0] - began)
            self.say("overlayfs", "local")
        finally:
            self.containerd.set_mirror(self.registry.host, self.proxy.url)
            remove(self.containerd, image)

    def ours(self, case: str, image: str, driver: str = EROFS) -> None:
        """On an empty node."""
        self.empty_node(driver)
        with received_bytes(self.link.interface) as received:
            self.values[f"{case}_s"].append(self.start(image, SNAPSHOTTER))
        fetched = self.node.status()["fetch"]
        self.remove(image)
        told = self.last_start()
        touched = told["fetched_received_bytes"] - told["vain_received_bytes"]
        self.values[f"requests_{case}"].append(fetched["requests"])
        self.values[f"link_bytes_{case}"].append(received[0])
        self.values[f"waited_s_{case}"].append(told["waiting_seconds"])
        self.values[f"touched_bytes_{case}"].append(touched)
        self.say(case)

    def say(self, *cases: str) -> None:
        """What was measured last."""
        names = [name for case in cases for name in (f"{case}_s", *(f"{of}_{case}" for of in _OF_A_START))]
        told = {name: round(self.values[name][-1], 2) for name in names if name in self.values}
        print(f"  {told}", file=sys.stderr, flush=True)

    def round(self, image: str, next_tag: str | None, drivers: Sequence[str]) -> None:
        """Every case once."""
        self.overlayfs(image)
        self.proxy.forget_everything()
        self.ours("first_ever", image)
        self.proxy.warm(image, seconds=PULL_SECONDS)
        self.drop_plan(image)
        self.ours("no_plan", image)
        self.ours("plan", image)
        if next_tag is not None:
            self.proxy.warm(next_tag, seconds=PULL_SECONDS)
            self.ours("next_tag", next_tag)
            self.drop_plan(next_tag)  # else the first tag inherits it below
        if FUSE in drivers:
            self.drop_plan(image)
            self.ours("no_plan_portable", image, FUSE)
            self.ours("plan_portable", image, FUSE)


@contextlib.contextmanager
def lab(root: Path, link: Link) -> Iterator[Lab]:
    with contextlib.ExitStack() as stack:
        stack.callback(unmount_all_below, root)
        registry = stack.enter_context(FarRegistry(root / "registry", link))
        proxy = stack.enter_context(FarProxy(root / "proxy", registry, link))
        data = root / "ctd" / "data" / f"io.containerd.snapshotter.v1.{SNAPSHOTTER}"
        node = stack.enter_context(Node(root / "node", [proxy.url], data=data))
        containerd = stack.enter_context(
            Containerd(
                root / "ctd",
                snapshotter_socket=node.socket,
                snapshotter_root=data,
                registry_mirrors={registry.host: proxy.url},
            )
        )
        yield Lab(link, registry, proxy, node, containerd)


def push(registry: FarRegistry, source: str, name: str) -> str:
    """Copy an image (a layout's directory with a tag v1 or v2, or a registry's reference) to the far registry."""
    layout = Path(source)
    if (layout / "index.json").exists():
        (entry,) = json.loads((layout / "index.json").read_bytes())["manifests"]
        tag = entry["annotations"]["org.opencontainers.image.ref.name"]
        return registry.push(Image(layout, tag, manifest_digest="", layers=()), name)
    run(
        *("skopeo", "--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false"),
        *(f"docker://{source}", f"docker://{registry.host}/{name}"),
        seconds=PULL_SECONDS,
    )
    return f"{registry.host}/{name}"


def measure(report: Report, args: argparse.Namespace) -> None:
    image = args.image
    next_tag = args.next
    if image is None:
        first = build(args.cache)
        image, next_tag = str(first), str(next_demo(args.cache, first))
    drivers = [EROFS, FUSE] if args.driver == "both" else [args.driver]
    root = Path(tempfile.mkdtemp(prefix="fpc", dir=args.work))
    failed = 0
    try:
        with shaped_link(args.bandwidth, seconds(args.rtt)) as link, lab(root, link) as parts:
            first_ref = push(parts.registry, image, "load/ai:v1")
            next_ref = push(parts.registry, next_tag, "load/ai:v2") if next_tag is not None else None
            try:
                for number in range(1, args.runs + 1):
                    print(f"  run {number} of {args.runs}", file=sys.stderr, flush=True)
                    try:
                        parts.round(first_ref, next_ref, drivers)
                    except (AssertionError, OSError, KeyError, subprocess.SubprocessError) as exc:
                        failed += 1
                        print(f"  run {number} FAILED: {exc}", file=sys.stderr, flush=True)
                        parts.clear(first_ref, next_ref)
            finally:
                tell(report, parts.values, bits_per_second(args.bandwidth))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if failed:
        raise SystemExit(f"{failed} of {args.runs} runs failed: the medians are of what was measured")


def tell(report: Report, values: Mapping[str, Sequence[float]], bits: float) -> None:
    """The medians of what was measured, with what they should be."""
    median = {case: statistics.median(taken) for case, taken in values.items() if taken}

    def row(case: str, unit: str = "s", *, of: str = "", at_most: float | None = None) -> None:
        if (of or case) in median:
            report.add(case, median[of or case], unit, at_most=at_most)

    def share(of: str, part: float) -> float | None:
        return median[of] * part if of in median else None

    row("overlayfs_s")
    row("local_s")
    row("first_ever_s", at_most=share("overlayfs_s", 1 / 2))
    row("no_plan_s", at_most=share("overlayfs_s", 1 / 5))
    needed = median.get("touched_bytes_plan")
    if needed is not None:
        ideal = 1.25 * (median["local_s"] + 8 * needed / bits)
        row("plan_s", at_most=min(median["overlayfs_s"] / 10, ideal))
    row("next_tag_s", at_most=share("plan_s", 1.3))
    row("no_plan_portable_s")
    row("plan_portable_s")
    if needed is not None:
        report.add("link_bytes_over_touched", median["link_bytes_plan"] / max(needed, 1), "x", at_most=1.1)
        report.add("touched_mb", needed / 1e6, "MB, compressed")
    for case in ("plan", "no_plan", "next_tag", "plan_portable", "no_plan_portable"):
        row(f"requests_{case}", "requests for chunks")
        row(f"waited_{case}_s", "s somebody waited", of=f"waited_s_{case}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--image", metavar="REF", help="a registry's image or an OCI layout, instead of the demo's image"
    )
    parser.add_argument("--next", metavar="REF", help="the next tag of --image; without it that case is left out")
    parser.add_argument("--driver", choices=(EROFS, "both"), default=EROFS, help="default: %(default)s")
    parser.add_argument("--bandwidth", default="1gbit", help="of the link, as tc takes it (default %(default)s)")
    parser.add_argument("--rtt", default="1ms", help="of the link (default %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="of each case (default %(default)s)")
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="where the demo's images are kept (default %(default)s)"
    )
    parser.add_argument("--work", type=Path, default=WORK, help="where the rest happens (default %(default)s)")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))  # through every clean-up
    main("cold starts over a slow link", measure, parser)
