"""Containers on the portable driver, under a real containerd: the whole tree through pyfuse3."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from harness.images import ImageMaker
from harness.oci import directory, file, hardlink, symlink, whiteout
from harness.portable import children_below
from harness.registry import Registry
from harness.stack import Stack
from harness.waiting import until

pytest.importorskip("pyfuse3")

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.slow, pytest.mark.timeout(400)]

BIG = random.Random(11).randbytes(4_000_000)
READS = 30


@pytest.fixture(scope="module")
def stack(module_lab: Path, registry: Registry, sandbox_image: str) -> Iterator[Stack]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("FASTPULL_NODE__DRIVER", "fuse")
        with Stack(module_lab, registry=registry, sandbox_image=sandbox_image) as stack:
            assert stack.node.status()["driver"] == "fuse"
            yield stack


@pytest.fixture(scope="module")
def image(stack: Stack, images: ImageMaker) -> str:
    image = images.push(
        [directory("app"), file("app/big", BIG), file("app/small", b"small\n", mode=0o640, uid=1000, gid=1000)],
        [
            symlink("app/link", "big"),
            file("app/kept", b"kept"),
            hardlink("app/same", "app/kept"),
            whiteout("app/small"),
        ],
    )
    stack.proxy.warm(image)
    return image


def fnv(data: bytes) -> str:
    """As ``tool sum`` prints it."""
    value = 1469598103934665603
    for byte in data:
        value = (value ^ byte) * 1099511628211 & 0xFFFFFFFFFFFFFFFF
    return f"{len(data)} {value:016x}"


def clear(stack: Stack) -> None:
    """Remove every pod and image, and see that nothing is left of them on the node."""
    stack.cri.remove_all_pods()
    for reference in [tag for known in stack.cri.images() for tag in known.repo_tags]:
        stack.cri.remove_image(reference)
    stack.containerd.collect_garbage()
    assert stack.containerd.snapshots() == []
    until(lambda: stack.node.status()["chains"] == [], "no chain is mounted")
    until(lambda: not children_below(stack.node.run_dir), "no process serves one")


def test_a_pod_runs_from_its_pull_to_its_removal(stack: Stack, images: ImageMaker, image: str) -> None:
    """No layer is downloaded by containerd, every byte is right, what is written stays in the container."""
    stack.cri.pull(image)
    layers = {layer.digest for layer in images.image(image).layers}
    assert layers.isdisjoint(stack.containerd.blobs())

    cri = stack.cri
    pod = cri.run_pod()
    container = cri.run_container(pod, image, ["/tool", "sleep"])
    assert sorted(cri.exec(container, ["/tool", "ls", "/app"]).stdout.split()) == ["big", "kept", "link", "same"]
    assert cri.exec(container, ["/tool", "sum", "/app/link"]).stdout.strip() == fnv(BIG)
    assert cri.exec(container, ["/tool", "write", "/app/big", "end"]).exit_code == 0
    assert cri.exec(container, ["/tool", "sum", "/app/big"]).stdout.strip() == fnv(BIG + b"end\n")
    cri.remove_container(container)
    again = cri.run_container(pod, image, ["/tool", "sum", "/app/big"], name="again")
    assert cri.wait_exit(again) == 0
    assert cri.log(pod, "again").strip() == fnv(BIG)
    clear(stack)


@pytest.mark.fault(
    "containerd: portable driver, node daemon killed while a container reads",
    done="kill -9 again and again",
    promised="no read fails, no byte is wrong",
)
def test_a_container_that_reads_survives_kills_of_the_daemon(stack: Stack, image: str) -> None:
    """Its mount's process goes on without; what is not here waits for the next daemon."""
    stack.cri.pull(image)
    pod = stack.cri.run_pod()
    container = stack.cri.run_container(pod, image, ["/tool", "reread", "/app/big", str(READS)])
    serving = set(children_below(stack.node.run_dir))
    kills = 0
    while stack.cri.is_running(container) and kills < 3:
        stack.node.kill()
        stack.node.start()
        kills += 1

    assert stack.cri.wait_exit(container) == 0, stack.cri.log(pod)
    assert stack.cri.log(pod).strip() == f"ok {READS}"
    assert kills >= 1
    assert set(children_below(stack.node.run_dir)) == serving
    # The image can be used as before, by the daemon that did not mount it.
    again = until(
        lambda: stack.cri.run_container(pod, image, ["/tool", "sum", "/app/big"], name="again"),
        "a second container",
        ignore=(grpc.RpcError,),
    )
    assert stack.cri.wait_exit(again) == 0
    clear(stack)


@pytest.mark.fault(
    "containerd: portable driver, the process of a mount killed",
    done="kill -9",
    promised="**not survived** by the container that runs; new ones start",
)
def test_after_the_death_of_its_process_new_containers_start(stack: Stack, image: str) -> None:
    """Those that ran on the dead mount get errors and can be removed; the image works at once for the next one."""
    stack.cri.pull(image)
    pod = stack.cri.run_pod()
    container = stack.cri.run_container(pod, image, ["/tool", "sleep"])
    before = stack.node.status()["portable"]["deaths"]
    for victim in children_below(stack.node.run_dir):
        os.kill(victim, signal.SIGKILL)
    until(lambda: stack.node.status()["portable"]["deaths"] > before, "the daemon has noticed")
    with pytest.raises((grpc.RpcError, AssertionError)):
        assert stack.cri.exec(container, ["/tool", "cat", "/app/kept"]).exit_code == 0

    fresh = stack.cri.run_pod()
    again = until(
        lambda: stack.cri.run_container(fresh, image, ["/tool", "sum", "/app/big"], name="again"),
        "a container on a new mount",
        ignore=(grpc.RpcError,),
    )
    assert stack.cri.wait_exit(again) == 0
    assert stack.cri.log(fresh, "again").strip() == fnv(BIG)
    clear(stack)
