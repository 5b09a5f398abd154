"""Images start lazily under a real containerd, through the real proxy and node daemon; the configuration is stock."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.images import ImageMaker
from harness.oci import TarEntry, directory, file, symlink, whiteout
from harness.registry import PASSWORD, USERNAME, Registry
from harness.stack import Stack
from harness.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.slow]

MAX_ENTRIES = 200  # of a layer, for this file's proxy: what has more can not be served lazily
STALL_SECONDS = 5.0


@pytest.fixture(scope="module")
def stack(module_lab: Path, registry: Registry, sandbox_image: str) -> Iterator[Stack]:
    settings = f"[ingest]\nmax_entries = {MAX_ENTRIES}\nstall_seconds = {STALL_SECONDS}\n"
    with Stack(module_lab, registry=registry, sandbox_image=sandbox_image, proxy_settings=settings) as stack:
        yield stack


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def app(seed: int) -> list[TarEntry]:
    return [
        directory("app"),
        file("app/big", content(seed, 1_000_000)),
        file("app/small", b"small\n", mode=0o640, uid=1000, gid=1000),
        symlink("app/link", "big"),
    ]


def fnv(data: bytes) -> str:
    """As ``tool sum`` prints it."""
    value = 1469598103934665603
    for byte in data:
        value = (value ^ byte) * 1099511628211 & 0xFFFFFFFFFFFFFFFF
    return f"{len(data)} {value:016x}"


def assert_no_layer_was_downloaded(stack: Stack, images: ImageMaker, image: str, namespace: str = "k8s.io") -> None:
    layers = {layer.digest for layer in images.image(image).layers}
    assert layers.isdisjoint(stack.containerd.blobs(namespace))


def test_a_pod_runs_from_its_pull_to_its_removal(stack: Stack, images: ImageMaker, registry: Registry) -> None:
    """No layer is downloaded by containerd, every byte is right, and in the end nothing is left on the node."""
    image = images.push(app(1), [directory("more"), file("more/file", b"more\n"), whiteout("app/small")])
    stack.proxy.warm(image)
    with registry.watched() as seen:
        stack.cri.pull(image)
    layers = {layer.digest for layer in images.image(image).layers}
    assert layers.isdisjoint(request.blob for request in seen)
    assert_no_layer_was_downloaded(stack, images, image)

    cri = stack.cri
    pod = cri.run_pod()
    container = cri.run_container(pod, image, ["/tool", "sleep"])
    assert sorted(cri.exec(container, ["/tool", "ls", "/app"]).stdout.split()) == ["big", "link"]
    assert cri.exec(container, ["/tool", "sum", "/app/link"]).stdout.strip() == fnv(content(1, 1_000_000))
    assert cri.exec(container, ["/tool", "write", "/app/big", "end"]).exit_code == 0
    assert cri.exec(container, ["/tool", "sum", "/app/big"]).stdout.strip() == fnv(content(1, 1_000_000) + b"end\n")
    cri.remove_container(container)
    again = cri.run_container(pod, image, ["/tool", "sum", "/app/big"], name="again")
    assert cri.wait_exit(again) == 0
    assert cri.log(pod, "again").strip() == fnv(content(1, 1_000_000))

    cri.remove_all_pods()
    for reference in [tag for known in cri.images() for tag in known.repo_tags]:
        cri.remove_image(reference)
    stack.containerd.collect_garbage()
    assert stack.containerd.snapshots() == []
    assert [path for path in (stack.node.data / "snapshots").iterdir() if path.name.isdecimal()] == []
    assert stack.node.status()["chains"] == []


def test_ctr_remote_pulls_lazily_and_ctr_runs(stack: Stack, images: ImageMaker) -> None:
    """In the default namespace, without CRI."""
    image = images.push(app(2))
    stack.proxy.warm(image)
    containerd = stack.containerd

    containerd.ctr_remote("images", "rpull", "--plain-http", "--snapshotter", "fastpull", image)
    output = containerd.ctr(
        *("run", "--rm", "--snapshotter", "fastpull", image, "ctr-1", "/tool", "sum", "/app/big"), namespace="default"
    )

    assert output.splitlines()[-1] == fnv(content(2, 1_000_000))
    assert_no_layer_was_downloaded(stack, images, image, "default")


def test_an_image_nobody_warmed_is_indexed_while_it_is_pulled(stack: Stack, images: ImageMaker) -> None:
    """Its manifest passes through the proxy, which begins at once; a small image is ready in time."""
    image = images.push(app(3))

    stack.cri.pull(image)

    assert_no_layer_was_downloaded(stack, images, image)
    container = stack.cri.run_container(stack.cri.run_pod(), image, ["/tool", "sleep"])
    assert stack.cri.exec(container, ["/tool", "sum", "/app/big"]).stdout.strip() == fnv(content(3, 1_000_000))


@pytest.mark.fault(
    "containerd: an image that can not be served lazily",
    done="pulled",
    promised="an ordinary pull",
)
def test_an_image_that_can_not_be_served_is_unpacked_by_containerd(stack: Stack, images: ImageMaker) -> None:
    image = images.push([file(f"many/{number}", b"x") for number in range(MAX_ENTRIES + 1)])

    stack.cri.pull(image)

    container = stack.cri.run_container(stack.cri.run_pod(), image, ["/tool", "sleep"])
    assert len(stack.cri.exec(container, ["/tool", "ls", "/many"]).stdout.split()) == MAX_ENTRIES + 1
    assert {layer.digest for layer in images.image(image).layers[1:]} <= stack.containerd.blobs()


@pytest.mark.fault(
    "containerd: an ingest worker hangs during a pull",
    done="SIGSTOP of the proxy's worker processes, then the pull of an image that nobody has seen",
    promised="after ingest.stall_seconds an ordinary pull; the next image is served lazily",
)
def test_a_pull_outlives_an_ingest_worker_that_hangs(stack: Stack, images: ImageMaker) -> None:
    stack.proxy.warm(images.push(app(7)))  # so that there is a worker, and the next layer goes to it
    for pid in stack.proxy.process.children("ingest.worker"):
        os.kill(pid, signal.SIGSTOP)
    image, following = images.push(app(8)), images.push(app(9))

    stack.cri.pull(image)
    stack.cri.pull(following)

    assert {layer.digest for layer in images.image(image).layers[1:]} <= stack.containerd.blobs()
    container = stack.cri.run_container(stack.cri.run_pod(), image, ["/tool", "sleep"])
    assert stack.cri.exec(container, ["/tool", "sum", "/app/big"]).stdout.strip() == fnv(content(8, 1_000_000))
    assert {layer.digest for layer in images.image(following).layers[1:]}.isdisjoint(stack.containerd.blobs())


def test_another_images_upper_layers_are_unpacked_on_a_lazy_base(stack: Stack, images: ImageMaker) -> None:
    """Two images share their lower layers; what one of them adds can not be served."""
    base = images.push(app(4))
    stack.proxy.warm(base)
    stack.cri.pull(base)
    added = [whiteout("app/small"), *(file(f"app/{number}", b"x") for number in range(MAX_ENTRIES + 1))]
    mixed = images.push_layers([*images.image(base).layers, images.layout.add_layer(added)])

    stack.cri.pull(mixed)

    container = stack.cri.run_container(stack.cri.run_pod(), mixed, ["/tool", "sleep"])
    names = stack.cri.exec(container, ["/tool", "ls", "/app"]).stdout.split()
    assert len(names) == MAX_ENTRIES + 1 + 2
    assert "small" not in names
    assert stack.cri.exec(container, ["/tool", "sum", "/app/big"]).stdout.strip() == fnv(content(4, 1_000_000))
    assert_no_layer_was_downloaded(stack, images, base)


def test_a_pod_of_a_private_image_needs_no_secret_on_the_node(lab: Path) -> None:
    """The proxy logs in; containerd is given nothing."""
    with Registry(lab / "r", with_login=True) as private:
        images = ImageMaker(lab / "i", private)
        sandbox, image = images.push(), images.push(app(5))
        with Stack(lab, registry=private, sandbox_image=sandbox) as stack:
            stack.proxy.warm(image)
            stack.cri.pull(image)
            assert_no_layer_was_downloaded(stack, images, image)
            container = stack.cri.run_container(stack.cri.run_pod(), image, ["/tool", "sleep"])
            assert stack.cri.exec(container, ["/tool", "sum", "/app/big"]).stdout.strip() == fnv(content(5, 1_000_000))
            # And where the proxy does not answer, the registry asks for the login as ever.
            stack.proxy.stop()
            unpacked = images.push(app(6))
            stack.cri.pull(unpacked, username=USERNAME, password=PASSWORD)
            assert {layer.digest for layer in images.image(unpacked).layers} <= stack.containerd.blobs()


def test_the_place_for_kubelets_disk_statistics_is_ours(stack: Stack) -> None:
    assert stack.cri.image_file_systems() == [str(stack.node.data)]


def test_the_writable_layers_size_is_reported(stack: Stack, images: ImageMaker) -> None:
    image = images.push()
    stack.proxy.warm(image)
    stack.cri.pull(image)
    container = stack.cri.run_container(stack.cri.run_pod(), image, ["/tool", "sleep"])
    stack.cri.exec(container, ["/tool", "write", "/tmp/file", "x" * 60_000])

    until(lambda: stack.cri.writable_bytes(container) >= 60_000, "CRI has measured the container")
