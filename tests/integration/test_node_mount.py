"""The node daemon with the real kernel: FUSE, EROFS, ``fastpull-node``; only the proxy is a fake."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.fault_rows import Seen
from harness.lab import drop_page_cache, short_directory
from harness.mounts import mount_points_below
from harness.node import Node
from harness.processes import free_port, run
from harness.sample_image import SampleImage, sums
from harness.waiting import until

from fastpull.cache.wire import Plan
from fastpull.image.chunk_map import ChunkMap

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(600),  # some thirty processes one after another
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

BIG = 12 << 20


@pytest.fixture
def image() -> Iterator[SampleImage]:
    image = SampleImage(small_files=150, big_bytes=BIG)
    with image.proxy.in_thread():
        yield image


@pytest.fixture
def root() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.fixture
def node(image: SampleImage, root: Path) -> Iterator[Node]:
    with Node(root / "n", [image.proxy.url], extra_settings="[trace]\nsettle_seconds = 3600\n") as node:
        yield node


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return str(answer.read().decode())


def mount(node: Node, root: Path, *options: str) -> Path:
    node.command("mount", *options, "demo:1", root / "mnt")
    return root / "mnt"


def until_local(node: Node) -> None:
    """Chunks are stored behind the backs of their readers: wait until all are."""

    def all_local() -> bool:
        (chain,) = node.status()["chains"]
        return bool(chain["local_chunks"] == chain["chunks"])

    until(all_local, "everything is in the node cache", every=0.5)


def test_a_mounted_image_reads_as_it_was_built(image: SampleImage, node: Node, root: Path) -> None:
    """Every byte through EROFS, FUSE and the proxy; then once more with the proxy unreachable."""
    path = mount(node, root)
    assert sums(path) == image.sums()
    assert os.readlink(path / "usr") == "lib"
    assert set(image.proxy.asked.values()) == {1}, "no chunk is fetched twice"

    until_local(node)
    status = node.status()
    (chain,) = status["chains"]
    assert chain["chain_id"] == str(image.chain)
    assert chain["chunks"] == len(image.proxy.asked)
    assert chain["local_bytes"] == chain["content_bytes"]
    assert chain["users"] == [f"dir:{path}"]
    assert (status["driver"], status["holder_is_up"]) == ("erofs", True)

    before = len(image.proxy.requests)
    drop_page_cache()
    assert sums(path) == image.sums()
    assert len(image.proxy.requests) == before, "everything is in the node cache"

    node.command("umount", path)
    assert mount_points_below(path) == []
    assert node.status()["chains"] == []
    assert not list((node.data / "chains").iterdir())


@pytest.mark.fault(
    "node daemon: killed during a cold read through EROFS",
    done="3 times kill -9 in one sha256sum of a file that is not here",
    promised="the right sum",
)
def test_a_daemon_that_is_killed_costs_its_readers_only_time(
    image: SampleImage, node: Node, root: Path, seen: Seen
) -> None:
    """kill -9 in the middle of a read, again and again: the right bytes, no error."""
    path = mount(node, root)
    proxy = image.proxy
    proxy.budget = 20  # of the 300 chunks of the file: the reader can not be done before we are
    reader = subprocess.Popen(["sha256sum", path / "big"], stdout=subprocess.PIPE, text=True)
    try:
        for round_ in range(3):
            until(lambda: proxy.sent >= proxy.budget, "the reader makes progress")
            node.kill()
            assert reader.poll() is None, f"round {round_}: the reader waits"
            proxy.budget = proxy.sent + 20
            node.start()
        proxy.budget = math.inf
        out, _ = reader.communicate(timeout=120)
    finally:
        reader.kill()
        reader.wait()

    assert (reader.returncode, out.split()[0]) == (0, hashlib.sha256(image.files[b"big"]).hexdigest())
    assert sums(path) == image.sums()
    node.command("umount", path)
    seen("3 kills, the right sum")


@pytest.mark.fault(
    "node daemon: restarted while the proxy is away",
    done="restart, page cache dropped",
    promised="what is local reads on",
)
def test_a_restart_needs_no_proxy(image: SampleImage, root: Path, node: Node) -> None:
    """What is mounted and local goes on while the proxy is away."""
    path = mount(node, root)
    assert sums(path) == image.sums()
    until_local(node)
    node.config.write_text(node.config.read_text().replace(image.proxy.url, "http://127.0.0.1:9"))
    node.restart()

    drop_page_cache()
    assert sums(path) == image.sums()


def test_a_stop_unmounts_and_a_start_mounts_again(image: SampleImage, root: Path, node: Node) -> None:
    """``stop`` leaves no mount and no holder; the next daemon restores what its users want."""
    path = mount(node, root)
    node.command("stop")
    assert mount_points_below(node.root) == []
    until(lambda: not node._leftovers(), "daemon and holder have ended")
    node.process.wait()
    run("umount", path)  # the bind, which is not the daemon's

    node.start()
    until(lambda: mount_points_below(node.data / "chains"), "the chain is mounted again")
    assert node.status()["chains"][0]["users"] == [f"dir:{path}"]
    node.command("umount", path)
    assert node.status()["chains"] == []


def test_a_start_is_traced_and_the_next_one_is_prefetched(image: SampleImage, root: Path, node: Node) -> None:
    """The trace names what was read in its order; a plan of it is fetched before anybody reads."""
    path = mount(node, root, "--start")
    wanted = ["lib/m010.py", "big", "lib/m100.py"]
    for name in wanted:
        run("cat", path / name)
    node.command("umount", path)  # on a slow machine a start is over sooner than a test is done with it
    until(lambda: image.proxy.traces, "the trace arrives")
    trace = image.proxy.traces[0]
    assert (trace.chain_id, trace.ended_by) == (str(image.chain), "unmount")
    node.command("stop")
    shutil.rmtree(node.data)
    until(lambda: not node._leftovers(), "daemon and holder have ended")
    node.process.wait()

    image.proxy.plans[str(image.chain)] = Plan(chain_id=str(image.chain), chunks=trace.chunks, starts=1)
    image.proxy.requests.clear()
    node.start()
    path = mount(node, root, "--start")
    until(lambda: sum(map(len, image.proxy.requests)) >= len(trace.chunks), "the plan is fetched")
    until(lambda: node.status()["chains"][0]["local_chunks"] == len(trace.chunks), "the plan is here")
    assert [chunk.hex() for chunks in image.proxy.requests for chunk in chunks][:5] == list(trace.chunks[:5])
    for name in wanted:
        run("cat", path / name)
    assert node.status()["chains"][0]["misses"] == 0


def test_the_page_cache_is_warmed_along_the_plan(image: SampleImage, root: Path) -> None:
    """The kernel has the plan's bytes before anybody reads; such a start is not learned from."""
    chunks = ChunkMap.open(image.proxy.chains[str(image.chain)][1].chunk_map)
    plan = tuple(chunks.id_at(n).hex() for n in range(40, 60))
    image.proxy.plans[str(image.chain)] = Plan(chain_id=str(image.chain), chunks=plan, starts=1)
    with Node(root / "n", [image.proxy.url], extra_settings="[prefetch]\nwarm_page_cache = true\n") as node:
        path = mount(node, root, "--start")
        until(lambda: node.status()["chains"][0]["reads"] > 0, "somebody reads, and it is not us", every=0.5)
        until(lambda: node.status()["chains"][0]["local_chunks"] >= len(plan), "the plan is here", every=0.5)
        assert sums(path) == image.sums()
        node.command("umount", path)
        assert node.status()["traces_waiting"] == 0
    assert not image.proxy.traces


def test_without_a_daemon_a_mount_brings_its_own(image: SampleImage, root: Path) -> None:
    """For a look into an image: one daemon for one mount, gone without a trace after the umount."""
    environment = {
        **os.environ,
        "FASTPULL_NODE__RUN_DIR": str(root / "run"),
        "FASTPULL_NODE__ROOT": str(root / "data"),
        "FASTPULL_NODE__PROXIES": json.dumps([image.proxy.url]),
    }
    image.proxy.warming["demo:1"] = 3  # not indexed yet

    def command(*args: str, fails: bool = False) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "fastpull.fuse_client", *args],
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert (done.returncode == 1) if fails else (done.returncode == 0), done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    target = root / "mnt"
    try:
        assert "indexed layer" in command("mount", "demo:1", str(target))
        assert sums(target) == image.sums()
        assert "something is mounted" in command("mount", "demo:1", str(target), fails=True)
        with (target / "big").open("rb"):
            assert "busy" in command("umount", str(target), fails=True)
    finally:
        command("umount", str(target))
    assert mount_points_below(root) == []
    assert not list((root / "run" / "mounts").iterdir())
    assert not list((root / "data" / "mounts").iterdir())
    assert "not mounted by" in command("umount", str(target), fails=True)
    assert "no such image" in command("mount", "absent:1", str(target), fails=True)
    assert not list((root / "run" / "mounts").iterdir())


@pytest.mark.fault(
    "holder: killed under a mounted image, then the daemon",
    done="kill -9 of one after the other",
    promised="readers notice nothing",
)
def test_a_lost_holder_is_replaced(image: SampleImage, root: Path, node: Node) -> None:
    """Somebody kills the process that keeps the FUSE mount: readers notice nothing, and another one keeps it."""
    path = mount(node, root)
    first = node.status()["holder"]
    run("kill", "-KILL", first.rpartition(" ")[2].rstrip(")"))
    until(lambda: node.status()["holder"] != first and node.status()["holder_is_up"], "another holder")
    node.kill()
    node.start()
    assert sums(path) == image.sums()
    node.command("umount", path)


@pytest.mark.fault(
    "holder: killed together with the daemon, image mounted",
    done="kill -9 of both",
    promised="**not survived** by what is mounted, which the log names; new containers get a new mount",
)
def test_a_lost_fuse_mount_is_made_anew(image: SampleImage, root: Path, node: Node) -> None:
    """Daemon and holder killed together: the next daemon mounts everything anew, on fresh ground."""
    path = mount(node, root)
    holder = node.status()["holder"].rpartition(" ")[2].rstrip(")")
    run("kill", "-KILL", holder, str(node.process.pid))
    node.process.wait()
    node.start()
    until(lambda: "lost its data" in node.process.log_tail(), "the broken mount is named")
    until(lambda: node.status()["chains"], "the chain is mounted again")
    chain = Path(node.status()["chains"][0]["path"])
    assert sums(chain) == image.sums(), "the chain is whole; the bind of the old one is not"
    run("umount", "--lazy", path)
    node.command("umount", path)
    assert node.status()["chains"] == []


@pytest.mark.fault(
    "node daemon: its FUSE connection ended by somebody",
    done="umount --force",
    promised="the daemon says why and ends, the next one mounts anew",
)
def test_a_fuse_mount_that_is_pulled_away_ends_the_daemon(image: SampleImage, root: Path, node: Node) -> None:
    """It says why and ends with 1, for its supervisor to start it anew."""
    mount(node, root)
    run("umount", "--force", "--lazy", node.run_dir / "devices")
    assert node.process.wait() == 1
    assert "the FUSE mount is gone" in node.process.log_tail()
    assert "Traceback" not in node.process.log_tail()
    run("umount", "--lazy", root / "mnt")
    node.start()
    until(lambda: node.status()["chains"], "the chain is mounted again")
    node.command("umount", root / "mnt")


def test_the_metrics_tell_of_fetches_and_proxies(image: SampleImage, root: Path) -> None:
    """Where a port is set."""
    port = free_port()
    with Node(root / "n", [image.proxy.url], extra_settings="") as node:
        node.config.write_text(f"metrics_port = {port}\n" + node.config.read_text())
        node.restart()
        path = mount(node, root)
        run("cat", path / "big")
        text = get(f"http://127.0.0.1:{port}/metrics")
        assert get(f"http://127.0.0.1:{port}/healthz") == "ok\n"
        node.command("umount", path)

    numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(numbers['fastpull_node_fetch_content_bytes_total{lane="demand"}']) > 0
    assert numbers[f'fastpull_node_proxy_up{{url="{image.proxy.url}"}}'] == "1.0"
    assert numbers["fastpull_node_chains"] == "1.0"
    assert 'fastpull_node_info{driver="erofs"' in text
