"""Cold starts of one image over a slow link: containerd's overlayfs, ours, and ours with what was learned.

The registry and the proxy stand behind a shaped link, the node and a private containerd on this side. Before each
run the caches of the case and the page cache are emptied. The cases take turns, so that the machine's moods hit all
alike; medians are told. A start is measured from the begin of the pull to the line in which the program
says that it is ready.

    .venv/bin/python load_tests/cold_start.py [--image REF --next REF] [--bandwidth 1gbit] [--rtt 1ms] [--runs 5]

The image is that of the demo, its next tag the same with another version of one package and what depends on it. Any
other image must print a line that begins with "started" first, and one that begins with "ready" once it is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[1] / part) for part in ("tests", "deploy/demo")]

from build_image import PACKAGES, build
from far_side import FarProxy, FarRegistry, Link, bits_per_second, seconds, shaped_link
from harness.containerd import SNAPSHOTTER, Containerd
from harness.mounts import unmount_all_below
from harness.node import Node
from harness.oci import Image
from harness.processes import run
from harness.starts import NAMESPACE, READY, drop_page_cache, received_bytes, remove, run_container, until_connected
from harness.waiting import until
from report import Report, main

CACHE = Path("/var/cache/fastpull-demo")
WORK = Path("/var/lib")  # a real disk
OVERLAYFS = "overlayfs"
NEXT_PACKAGES = (PACKAGES[0], "transformers==5.23.0")
CHANGED_LAYERS = 2  # of the demo's image: what is neither CUDA nor PyTorch, and the program
PULL_SECONDS = 3600.0


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

    def empty_node(self) -> None:
        """The same daemon on a node that has nothing."""
        self.node.stop()
        shutil.rmtree(self.node.data, ignore_errors=True)
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
        finally:
            self.containerd.set_mirror(self.registry.host, self.proxy.url)
            remove(self.containerd, image)

    def ours(self, case: str, image: str) -> None:
        """On an empty node."""
        self.empty_node()
        with received_bytes(self.link.interface) as received:
            self.values[f"{case}_s"].append(self.start(image, SNAPSHOTTER))
        requests = self.node.status()["fetch"]["requests"]
        self.remove(image)
        told = self.last_start()
        self.values[f"requests_{case}"].append(requests)
        self.values[f"link_bytes_{case}"].append(received[0])
        self.values[f"waited_s_{case}"].append(told["waiting_seconds"])
        touched = told["fetched_received_bytes"] - told["vain_received_bytes"]
        self.values[f"touched_bytes_{case}"].append(touched)

    def round(self, image: str, next_tag: str | None) -> None:
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
            self.drop_plan(next_tag)  # of an earlier round
            self.ours("next_tag", next_tag)


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


def next_demo(cache: Path, first: Path) -> Path:
    """The demo's next tag: its lower layers as they are, the upper ones of another build on top of them."""
    rebuilt = build(cache, packages=NEXT_PACKAGES, tag="v2")
    target = cache / f"next-{first.name}-{rebuilt.name}"
    if (target / "index.json").exists():
        return target
    shutil.rmtree(target, ignore_errors=True)
    blobs = target / "blobs/sha256"
    blobs.mkdir(parents=True)
    (manifest, config), (upper, upper_config) = _documents(first), _documents(rebuilt)
    keep = len(manifest["layers"]) - CHANGED_LAYERS
    manifest["layers"][keep:] = upper["layers"][-CHANGED_LAYERS:]
    config["rootfs"]["diff_ids"][keep:] = upper_config["rootfs"]["diff_ids"][-CHANGED_LAYERS:]
    for layer in manifest["layers"]:
        name = layer["digest"].removeprefix("sha256:")
        source = next(at for at in (first, rebuilt) if (at / "blobs/sha256" / name).exists())
        os.link(source / "blobs/sha256" / name, blobs / name)
    manifest["config"] |= _put(blobs, config)
    entry = {"mediaType": manifest["mediaType"], **_put(blobs, manifest)}
    entry["annotations"] = {"org.opencontainers.image.ref.name": "v2"}
    (target / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (target / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return target


def _documents(layout: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Manifest and config."""

    def blob(descriptor: dict[str, Any]) -> dict[str, Any]:
        return dict(json.loads((layout / "blobs" / descriptor["digest"].replace(":", "/")).read_bytes()))

    (entry,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    manifest = blob(entry)
    return manifest, blob(manifest["config"])


def _put(blobs: Path, document: dict[str, Any]) -> dict[str, Any]:
    import hashlib

    body = json.dumps(document, sort_keys=True).encode()
    digest = hashlib.sha256(body).hexdigest()
    (blobs / digest).write_bytes(body)
    return {"digest": f"sha256:{digest}", "size": len(body)}


def measure(report: Report, args: argparse.Namespace) -> None:
    image = args.image
    next_tag = args.next
    if image is None:
        first = build(args.cache)
        image, next_tag = str(first), str(next_demo(args.cache, first))
    root = Path(tempfile.mkdtemp(prefix="fpc", dir=args.work))
    try:
        with shaped_link(args.bandwidth, seconds(args.rtt)) as link, lab(root, link) as parts:
            first_ref = push(parts.registry, image, "load/ai:v1")
            next_ref = push(parts.registry, next_tag, "load/ai:v2") if next_tag is not None else None
            for number in range(args.runs):
                parts.round(first_ref, next_ref)
                told = {case: round(values[-1], 2) for case, values in parts.values.items() if case.endswith("_s")}
                print(f"  run {number + 1}: {told}", file=sys.stderr, flush=True)
            tell(report, parts.values, bits_per_second(args.bandwidth))
    finally:
        shutil.rmtree(root, ignore_errors=True)


def tell(report: Report, values: dict[str, list[float]], bits: float) -> None:
    """The medians, with what they should be."""
    median = {case: statistics.median(taken) for case, taken in values.items()}
    overlayfs, local = median["overlayfs_s"], median["local_s"]
    report.add("overlayfs_s", overlayfs, "s")
    report.add("local_s", local, "s")
    report.add("first_ever_s", median["first_ever_s"], "s", at_most=overlayfs / 2)
    report.add("no_plan_s", median["no_plan_s"], "s", at_most=overlayfs / 5)
    needed = median["touched_bytes_plan"]
    ideal = 1.25 * (local + 8 * needed / bits)
    report.add("plan_s", median["plan_s"], "s", at_most=min(overlayfs / 10, ideal))
    if "next_tag_s" in median:
        report.add("next_tag_s", median["next_tag_s"], "s", at_most=1.3 * median["plan_s"])
    report.add("link_bytes_over_touched", median["link_bytes_plan"] / max(needed, 1), "x", at_most=1.1)
    report.add("touched_mb", needed / 1e6, "MB, compressed")
    report.add("requests_plan", median["requests_plan"], "requests for chunks")
    report.add("requests_no_plan", median["requests_no_plan"], "requests for chunks")
    report.add("waited_plan_s", median["waited_s_plan"], "s somebody waited")
    report.add("waited_no_plan_s", median["waited_s_no_plan"], "s somebody waited")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--image", metavar="REF", help="a registry's image or an OCI layout, instead of the demo's image"
    )
    parser.add_argument("--next", metavar="REF", help="the next tag of --image; without it that case is left out")
    parser.add_argument("--bandwidth", default="1gbit", help="of the link, as tc takes it (default %(default)s)")
    parser.add_argument("--rtt", default="1ms", help="of the link (default %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="of each case (default %(default)s)")
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help="where the demo's images are kept (default %(default)s)"
    )
    parser.add_argument("--work", type=Path, default=WORK, help="where the rest happens (default %(default)s)")
    main("cold starts over a slow link", measure, parser)
