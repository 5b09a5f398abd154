"""Daemon, containerd and proxy die and come back under running containers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from harness.cri import CriClient
from harness.fault_rows import Seen
from harness.images import ImageMaker
from harness.oci import directory, file
from harness.registry import Registry
from harness.stack import Stack
from harness.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.slow]

BIG = random.Random(7).randbytes(8_000_000)
READS = 30


@pytest.fixture
def stack(lab: Path, registry: Registry, sandbox_image: str) -> Iterator[Stack]:
    with Stack(lab, registry=registry, sandbox_image=sandbox_image) as stack:
        yield stack


@pytest.fixture(scope="module")
def image(images: ImageMaker) -> str:
    return images.push([directory("app"), file("app/big", BIG)])


def pulled(stack: Stack, image: str) -> None:
    stack.proxy.warm(image)
    stack.cri.pull(image)


def pulled_again(cri: CriClient, image: str) -> None:
    """As kubelet, which tries again: containerd looks for a lost snapshotter every three seconds only."""
    until(lambda: cri.pull(image), f"{image} is pulled", ignore=(grpc.RpcError,))


@pytest.mark.fault(
    "containerd: node daemon killed while a container reads",
    done="kill -9 again and again",
    promised="no read fails, no byte is wrong",
)
def test_a_container_that_reads_survives_kills_of_the_daemon(stack: Stack, image: str, seen: Seen) -> None:
    """SIGKILL again and again: no read fails, no byte is wrong."""
    pulled(stack, image)
    pod = stack.cri.run_pod()
    container = stack.cri.run_container(pod, image, ["/tool", "reread", "/app/big", str(READS)])
    kills = 0
    while stack.cri.is_running(container) and kills < 5:
        stack.node.kill()
        stack.node.start()
        kills += 1

    assert stack.cri.wait_exit(container) == 0, stack.cri.log(pod)
    assert stack.cri.log(pod).strip() == f"ok {READS}"
    assert kills >= 1
    seen(f"{kills} kills in {READS} reads, 0 errors")


@pytest.mark.fault(
    "containerd: new container after a kill of the node daemon",
    done="kill -9",
    promised="it starts, containerd is not restarted",
)
def test_new_containers_start_after_the_daemon_was_killed(stack: Stack, image: str) -> None:
    """containerd is not restarted; images and containers are as they were."""
    pulled(stack, image)
    pod = stack.cri.run_pod()
    first = stack.cri.run_container(pod, image, ["/tool", "sleep"])
    stack.node.kill()
    stack.node.start()

    until(
        lambda: stack.cri.run_container(pod, image, ["/tool", "sleep"], name="second"),
        "a second container",
        ignore=(grpc.RpcError,),
    )

    assert stack.cri.is_running(first)
    assert stack.cri.exec(first, ["/tool", "sum", "/app/big"]).exit_code == 0


@pytest.mark.fault(
    "containerd: restarted, and the node daemon after it",
    done="both restarted",
    promised="the container runs on, the image is still listed",
)
def test_a_container_survives_restarts_of_containerd_and_daemon(stack: Stack, image: str) -> None:
    """In either order; CRI still lists the image."""
    pulled(stack, image)
    pod = stack.cri.run_pod()
    container = stack.cri.run_container(pod, image, ["/tool", "sleep"])

    stack.containerd.restart()
    stack.node.restart()

    with stack.containerd.cri() as cri:
        assert image in [tag for known in cri.images() for tag in known.repo_tags]
        assert cri.is_running(container)
        assert cri.exec(container, ["/tool", "sum", "/app/big"]).exit_code == 0
        pulled_again(cri, image)


@pytest.mark.fault(
    "containerd: started while the node daemon is down",
    done="daemon stopped, containerd restarted, daemon started",
    promised="containers run on; containerd forgets the image until the next pull",
)
def test_containerd_boots_without_the_daemon_and_the_image_comes_back(stack: Stack, image: str) -> None:
    """CRI forgets images whose snapshotter does not answer at boot. The containers run on, and a pull heals it."""
    pulled(stack, image)
    pod = stack.cri.run_pod()
    container = stack.cri.run_container(pod, image, ["/tool", "reread", "/app/big", "100000"])
    stack.node.process.stop(group=False)
    stack.containerd.restart()
    stack.node.start()

    with stack.containerd.cri() as cri:
        assert cri.is_running(container)
        pulled_again(cri, image)
        second = cri.run_container(pod, image, ["/tool", "sum", "/app/big"], name="second")
        assert cri.wait_exit(second) == 0
        assert cri.is_running(container)


@pytest.mark.fault(
    "containerd: pulls while the proxy is away",
    done="proxy stopped",
    promised="new images are pulled from the registry as always; what is local goes on",
)
def test_everything_is_pulled_as_always_while_the_proxy_is_away(stack: Stack, images: ImageMaker, image: str) -> None:
    """What is mounted and cached goes on; new images are downloaded and unpacked by containerd."""
    pulled(stack, image)
    pod = stack.cri.run_pod()
    container = stack.cri.run_container(pod, image, ["/tool", "sleep"])
    before = stack.cri.exec(container, ["/tool", "sum", "/app/big"]).stdout
    stack.proxy.stop()
    other = images.push([file("other", b"other\n")])

    stack.cri.pull(other)

    second = stack.cri.run_container(pod, other, ["/tool", "sleep"], name="other")
    assert stack.cri.exec(second, ["/tool", "cat", "/other"]).stdout == "other\n"
    assert {layer.digest for layer in images.image(other).layers} <= stack.containerd.blobs()
    assert stack.cri.exec(container, ["/tool", "sum", "/app/big"]).stdout == before
    third = stack.cri.run_container(pod, image, ["/tool", "sum", "/app/big"], name="third")
    assert stack.cri.wait_exit(third) == 0


@pytest.mark.fault(
    "containerd: our records of snapshots lost",
    done="the state directory emptied",
    promised="names are derived from the proxy again, the image starts",
)
def test_an_image_is_usable_after_the_snapshotters_records_were_lost(stack: Stack, image: str) -> None:
    """They are derived from what the proxy knows."""
    pulled(stack, image)
    stack.cri.remove_all_pods()
    stack.node.process.stop(group=False)
    for part in (stack.node.data / "state").iterdir():
        part.unlink()
    stack.node.start()

    pulled_again(stack.cri, image)
    container = stack.cri.run_container(stack.cri.run_pod(), image, ["/tool", "sum", "/app/big"])
    assert stack.cri.wait_exit(container) == 0
