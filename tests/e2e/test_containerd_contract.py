"""A real containerd over the snapshotter, with chains that are bind-mounted directories: the contract alone."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from fakes.chains import FakeChains
from harness.containerd import Containerd
from harness.cri import CriClient
from harness.images import ImageMaker, base_entries
from harness.oci import directory, file, tar_bytes, whiteout
from harness.registry import Registry
from harness.snapshots import ServedSnapshotter
from harness.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.slow]


@dataclass
class Setup:
    chains: FakeChains
    snapshotter: ServedSnapshotter
    containerd: Containerd
    cri: CriClient
    images: ImageMaker
    tree: Path

    def lazy(self, *layers: list) -> str:  # type: ignore[type-arg]
        """Push an image and make its chain servable."""
        reference = self.images.push(*layers)
        self.chains.add([layer.diff_id for layer in self.images.image(reference).layers], self.tree)
        return reference

    def directories(self) -> list[str]:
        return [path.name for path in (self.snapshotter.root / "snapshots").iterdir() if path.name.isdecimal()]


@pytest.fixture
def setup(lab: Path, images: ImageMaker, sandbox_image: str) -> Iterator[Setup]:
    tree = lab / "tree"
    entries = [*base_entries(images.tool), file("etc/lazy", b"from the chain\n")]
    with tarfile.open(fileobj=io.BytesIO(tar_bytes(entries))) as archive:
        archive.extractall(tree, filter="fully_trusted")
    chains = FakeChains(lab / "chains", with_mounts=True)
    chains.root.mkdir()
    root = lab / "c" / "data" / "io.containerd.snapshotter.v1.fastpull"
    with (
        ServedSnapshotter(root, chains) as served,
        Containerd(
            lab / "c", snapshotter_socket=served.socket, snapshotter_root=root, sandbox_image=sandbox_image
        ) as containerd,
        containerd.cri() as cri,
    ):
        yield Setup(chains, served, containerd, cri, images, tree)


def test_a_pod_lives_and_dies_on_a_lazy_image(setup: Setup, registry: Registry) -> None:
    """Pull, run as a named user, read, write, measure, remove: no layer is downloaded, and nothing is left."""
    image = setup.lazy([file("etc/never", b"not unpacked")])
    cri, containerd = setup.cri, setup.containerd
    with registry.watched() as seen:
        cri.pull(image)
    layers = {layer.digest for layer in setup.images.image(image).layers}
    assert layers.isdisjoint(request.blob for request in seen)
    assert layers.isdisjoint(containerd.blobs())

    pod = cri.run_pod()
    container = cri.run_container(pod, image, ["/tool", "sleep"], username="root")
    assert cri.exec(container, ["/tool", "cat", "/etc/lazy"]).stdout == "from the chain\n"
    assert cri.exec(container, ["/tool", "write", "/etc/lazy", "more"]).exit_code == 0
    assert cri.exec(container, ["/tool", "cat", "/etc/lazy"]).stdout == "from the chain\nmore\n"
    assert (setup.tree / "etc/lazy").read_text() == "from the chain\n"

    cri.remove_all_pods()
    for reference in [tag for known in cri.images() for tag in known.repo_tags]:
        cri.remove_image(reference)
    containerd.collect_garbage()
    assert containerd.snapshots() == []
    assert setup.directories() == []
    assert setup.chains.mounted() == {}
    with setup.snapshotter.client() as client:
        assert client.list() == []


def test_an_image_that_is_not_served_is_unpacked(setup: Setup) -> None:
    """With whiteouts, over several layers, as by containerd's own snapshotter."""
    image = setup.images.push(
        [directory("data"), file("data/old", b"1"), file("data/kept", b"2")],
        [whiteout("data/old"), file("data/new", b"3")],
    )
    setup.cri.pull(image)

    container = setup.cri.run_container(setup.cri.run_pod(), image, ["/tool", "sleep"])

    assert setup.cri.exec(container, ["/tool", "ls", "/data"]).stdout.split() == ["kept", "new"]
    assert setup.chains.mounted() == {}


def test_an_unpacked_layer_works_on_top_of_a_lazy_base(setup: Setup) -> None:
    """Whiteouts reach into the chain, and the differ finds parent directories there."""
    base = setup.lazy()
    lower = setup.images.image(base).layers
    upper = setup.images.layout.add_layer([file("etc/upper", b"unpacked\n"), whiteout("etc/lazy")])
    image = setup.images.push_layers([*lower, upper])
    setup.cri.pull(image)

    container = setup.cri.run_container(setup.cri.run_pod(), image, ["/tool", "sleep"])

    names = setup.cri.exec(container, ["/tool", "ls", "/etc"]).stdout.split()
    assert "upper" in names
    assert "passwd" in names
    assert "lazy" not in names
    assert setup.containerd.blobs().isdisjoint({layer.digest for layer in lower})


def test_two_namespaces_share_a_chain_and_the_last_one_frees_it(setup: Setup) -> None:
    image = setup.lazy()
    setup.cri.pull(image)
    remote = ["images", "rpull", "--plain-http", "--snapshotter", "fastpull", image]
    setup.containerd.ctr_remote(*remote, namespace="other")
    output = setup.containerd.ctr(
        "run", "--rm", "--snapshotter", "fastpull", image, "c1", "/tool", "cat", "/etc/lazy", namespace="other"
    )
    assert output.splitlines()[-1] == "from the chain"

    setup.cri.remove_image(image)
    setup.containerd.collect_garbage()
    assert len(setup.chains.mounted()) == 1
    setup.containerd.ctr("images", "rm", "--sync", image, namespace="other")
    setup.containerd.collect_garbage()
    assert setup.chains.mounted() == {}


def test_containers_and_pulls_survive_a_restart_of_the_snapshotter(setup: Setup) -> None:
    """Also one while a container runs, and containerd needs no restart."""
    image = setup.lazy()
    setup.cri.pull(image)
    pod = setup.cri.run_pod()
    container = setup.cri.run_container(pod, image, ["/tool", "sleep"])
    setup.snapshotter.stop()
    try:
        assert setup.cri.exec(container, ["/tool", "cat", "/etc/lazy"]).exit_code == 0
        with pytest.raises(grpc.RpcError):
            setup.cri.pull(setup.lazy())
    finally:
        setup.snapshotter.start()

    another = setup.lazy([file("etc/x")])
    pulled_again(setup.cri, another)
    setup.cri.run_container(pod, another, ["/tool", "sleep"], name="second")
    assert setup.cri.is_running(container)


def test_images_are_still_listed_after_containerd_restarts(setup: Setup) -> None:
    """CRI asks Stat for each image at boot and forgets those that are not answered."""
    image = setup.lazy()
    setup.cri.pull(image)
    pod = setup.cri.run_pod()
    container = setup.cri.run_container(pod, image, ["/tool", "sleep"])

    setup.containerd.restart()

    with setup.containerd.cri() as cri:
        assert image in [tag for known in cri.images() for tag in known.repo_tags]
        assert cri.is_running(container)
        assert cri.exec(container, ["/tool", "cat", "/etc/lazy"]).stdout == "from the chain\n"


def test_lost_records_of_lazy_images_are_derived_anew(setup: Setup) -> None:
    """The snapshotter's database is gone, containerd's is not: the image stays usable and can be pulled again."""
    image = setup.lazy()
    setup.cri.pull(image)
    setup.snapshotter.stop()
    for part in (setup.snapshotter.root / "state").iterdir():
        part.unlink()
    setup.snapshotter.start()

    pulled_again(setup.cri, image)
    container = setup.cri.run_container(setup.cri.run_pod(), image, ["/tool", "sleep"])

    assert setup.cri.exec(container, ["/tool", "cat", "/etc/lazy"]).stdout == "from the chain\n"


def pulled_again(cri: CriClient, image: str) -> None:
    """As kubelet, which tries again: containerd looks for a lost snapshotter every three seconds only."""
    until(lambda: cri.pull(image), f"{image} is pulled", ignore=(grpc.RpcError,))
