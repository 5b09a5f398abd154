"""What one start teaches, the next profits from: its own image's, and the next tag's. Through real containerd."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.images import ImageMaker
from harness.node import Node
from harness.oci import TarEntry, directory, file
from harness.processes import run
from harness.registry import Registry
from harness.stack import Stack
from harness.starts import NAMESPACE, pull, remove, until_connected
from harness.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.slow, pytest.mark.timeout(600)]

SNAPSHOTTER = "fastpull"
MIB = 1 << 20
NEEDED = 12  # files that the program reads, of twice as many
SETTINGS = "[trace]\nsettle_seconds = 1.0\n"


def content(name: str, size: int) -> bytes:
    return random.Random(name).randbytes(size)


def files(layer: str, version: str = "") -> list[TarEntry]:
    """20 MB of which a start reads the half, here and there."""
    return [directory(layer), *(file(f"{layer}/{n}", content(f"{layer}{version}{n}", MIB)) for n in range(2 * NEEDED))]


def program(*layers: str) -> list[str]:
    return ["/tool", "sum", *(f"/{layer}/{2 * n}" for layer in layers for n in range(NEEDED))]


@pytest.fixture(scope="module")
def stack(module_lab: Path, registry: Registry, sandbox_image: str) -> Iterator[Stack]:
    with Stack(module_lab, registry=registry, sandbox_image=sandbox_image, node_settings=SETTINGS) as stack:
        yield stack


def start(stack: Stack, image: str, command: list[str], *, planned: bool = True) -> tuple[str, str]:
    """Pull and run on a node that has nothing; what the program says, and which chain it ran from."""
    stack.node.stop()
    run("rm", "-rf", stack.node.data / "cache", stack.node.data / "chains")
    stack.node.start()
    until_connected(stack.containerd, SNAPSHOTTER)
    pull(stack.containerd, image, SNAPSHOTTER)
    chain = until(lambda: next((c for c in stack.node.status()["chains"] if c["users"]), None), "it is mounted")[
        "chain_id"
    ]
    if planned:
        prefetched(stack.node, chain)
    said = stack.containerd.ctr(
        *("run", "--rm", "--net-host", "--snapshotter", SNAPSHOTTER, image, f"start-{random.random()}", *command),
        namespace=NAMESPACE,
    )
    return said, str(chain)


def prefetched(node: Node, chain_id: str) -> None:
    """Readers that are faster than the network are not this test's matter: wait until the plan has arrived."""

    def arrived() -> bool:
        chain = next(chain for chain in node.status()["chains"] if chain["chain_id"] == chain_id)
        return bool(0 < chain["planned_chunks"] <= chain["local_chunks"])

    until(arrived, "the plan is here", every=0.5)


def end(stack: Stack, image: str) -> None:
    remove(stack.containerd, image)
    until(lambda: not stack.node.status()["chains"], "the chain is unmounted")
    until(lambda: not stack.node.status()["traces_waiting"], "the trace is sent")


def sums(images: ImageMaker, directory: Path, *contents: bytes) -> list[str]:
    """What the image's program says of files with these contents."""
    for number, data in enumerate(contents):
        (directory / str(number)).write_bytes(data)
    return run(images.tool, "sum", *(directory / str(number) for number in range(len(contents)))).splitlines()


def last_report(stack: Stack) -> dict[str, Any]:
    return dict(json.loads(stack.node.command("report", "--json")))


def demanded_share(report: dict[str, Any]) -> float:
    """The part of its bytes that the start had to ask for itself, neighbours taken along included."""
    asked = sum(lane["content_bytes"] for lane in report["fetched"] if lane["lane"] in ("demand", "window"))
    return float(asked / report["used_bytes"])


def test_the_second_start_and_the_next_tags_first_ask_for_almost_nothing(
    stack: Stack, images: ImageMaker, registry: Registry, tmp_path: Path
) -> None:
    """Less than 5 % of their bytes: the rest is here before it is needed. Nobody prepared anything, and files that have
    changed since are known by their paths.
    """
    layout = images.layout
    shared = [*images.image(images.push()).layers, layout.add_layer(files("a"))]
    old, new = files("b"), files("b")
    changed = bytearray(content("b0", MIB))
    changed[500_000:500_100] = b"the next version has other bytes, and more of them" * 3
    new[1] = file("b/0", bytes(changed))
    rewritten = {n: content(f"rewritten {n}", MIB + 1000) for n in (2, 4, 6)}  # an eighth of what is read
    for n, data in rewritten.items():
        new[1 + n] = file(f"b/{n}", data)
    first_tag = registry.push(layout.add_image("learn-1", [*shared, layout.add_layer(old)]), "learn/app:1")
    next_tag = registry.push(layout.add_image("learn-2", [*shared, layout.add_layer(new)]), "learn/app:2")
    stack.proxy.warm(first_tag)
    stack.proxy.warm(next_tag)
    expected = sums(images, tmp_path, *(content(f"{layer}{2 * n}", MIB) for layer in "ab" for n in range(NEEDED)))

    said, chain = start(stack, first_tag, program("a", "b"), planned=False)
    assert said.splitlines() == expected
    end(stack, first_tag)
    first = last_report(stack)
    assert (first["chain_id"], first["planned_chunks"]) == (chain, 0)
    assert demanded_share(first) > 0.5
    assert first["waited_by_cause"]["fetch"] > 0

    said, _ = start(stack, first_tag, program("a", "b"))
    assert said.splitlines() == expected
    end(stack, first_tag)
    second = last_report(stack)
    assert second["started_at"] > first["started_at"]
    assert demanded_share(second) < 0.05
    assert second["plan_misses"] < 0.05 * second["used_chunks"]

    said, next_chain = start(stack, next_tag, program("a", "b"))
    expected[NEEDED : NEEDED + 4] = sums(images, tmp_path, bytes(changed), *rewritten.values())
    assert said.splitlines() == expected
    assert next_chain != chain
    end(stack, next_tag)
    third = last_report(stack)
    assert third["chain_id"] == next_chain
    assert demanded_share(third) < 0.05
    assert stack.proxy.get(f"/v1/chains/{next_chain}/plan")["inherited_from"] == chain

    # The report outlives the start, its image on this node, and the daemon; layers and files have names.
    stack.node.restart()
    page = tmp_path / "report.html"
    again = json.loads(stack.node.command("report", first_tag, "--proxy", stack.proxy.url, "--json", "--html", page))
    assert again["started_at"] == second["started_at"]
    assert {use["path"] for use in again["files"]} >= {f"/a/{2 * n}" for n in range(NEEDED)}
    touched = [layer["touched_bytes"] for layer in again["layers"]]
    assert [size >= NEEDED * MIB for size in touched] == [False, True, True]
    assert "<svg" in page.read_text()


def test_a_running_container_names_its_start(stack: Stack, images: ImageMaker) -> None:
    """While it goes on, by the container's id."""
    image = images.push(files("c"))
    stack.proxy.warm(image)
    cri = stack.cri
    cri.pull(image)
    container = cri.run_container(cri.run_pod(), image, ["/tool", "sleep"])
    cri.exec(container, program("c"))
    try:
        report = json.loads(stack.node.command("report", container[:13], "--json"))
        assert report["used_bytes"] >= NEEDED * MIB
    finally:
        cri.remove_all_pods()


def test_a_start_made_on_purpose_teaches_too(stack: Stack, images: ImageMaker) -> None:
    """``fastpull-proxy trace``: no containerd, nothing is left; the image's first real start finds the plan."""
    image = images.push(files("d"))
    stack.proxy.warm(image)
    tracing = ["trace", "--proxy", stack.proxy.url, "--node-config", str(stack.node.config), image]

    said = run(sys.executable, "-P", "-m", "fastpull.proxy", *tracing, "--", *program("d"))

    assert "ended with exit code 0" in said
    chain = stack.proxy.get(f"/v1/images?ref={image}")["chain_id"]
    plan = stack.proxy.get(f"/v1/chains/{chain}/plan")
    assert plan["starts"] == 1
    assert len(plan["chunks"]) >= NEEDED * MIB // (256 * 1024)
    assert chain not in {known["chain_id"] for known in stack.node.status()["chains"]}


def test_without_a_node_a_start_on_purpose_says_what_to_do(stack: Stack, tmp_path: Path) -> None:
    """The remedy is the node's own."""
    settings = tmp_path / "node.toml"
    settings.write_text(f'run_dir = "{tmp_path}"\n')
    tracing = ["trace", "--proxy", stack.proxy.url, "--node-config", str(settings), "registry.test/any:1"]

    said = run(sys.executable, "-P", "-m", "fastpull.proxy", *tracing, check=False)

    assert "no daemon listens" in said
    assert "remedy: start one with `fastpull-node serve`" in said
