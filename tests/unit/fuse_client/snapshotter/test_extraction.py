"""Pulling an image: what containerd's unpacker and metadata store do, call by call, over gRPC."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from fakes.chains import FakeChains
from harness.snapshots import ServedSnapshotter, SnapshotsClient
from harness.waiting import until

from fastpull.cache.digest import Digest, chain_ids
from fastpull.fuse_client.errors import ProxyUnreachableError
from fastpull.fuse_client.snapshotter.labels import IMAGE_LAYERS, SNAPSHOT_REF
from fastpull.fuse_client.snapshotter.pb import snapshots_pb2 as pb

IMAGE = [Digest.of(f"layer {number}".encode()) for number in range(3)]
LATE = (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)  # whichever side notices first
_sequence = itertools.count(1)


class Unpacker:
    """One namespace of containerd: its own names for our snapshots (``metadata/snapshot.go``, createSnapshot)."""

    def __init__(self, client: SnapshotsClient, namespace: str = "k8s.io") -> None:
        self.client = client
        self.namespace = namespace
        self.names: dict[Digest, str] = {}  # chainID -> our name
        self.unpacked: list[Digest] = []  # chains whose layer was downloaded

    def pull(self, diff_ids: list[Digest], labels: dict[str, str] | None = None) -> str:
        parent = ""
        for chain in chain_ids(diff_ids):
            parent = self.layer(chain, parent, labels or {})
        return parent

    def layer(self, chain: Digest, parent: str, labels: dict[str, str]) -> str:
        if chain in self.names:
            return self.names[chain]
        wanted = {**labels, SNAPSHOT_REF: str(chain)}
        key = f"{self.namespace}/{next(_sequence)}/extract {chain}"
        try:
            self.client.prepare(key, parent, wanted)
        except grpc.RpcError as exc:
            assert exc.code() is grpc.StatusCode.ALREADY_EXISTS, exc.details()
            filters = f'labels."{SNAPSHOT_REF}"=={chain},parent=="{parent}"'
            found = [
                info
                for info in self.client.list(filters)
                if info.kind == pb.COMMITTED and info.labels[SNAPSHOT_REF] == str(chain) and info.parent == parent
            ]
            assert found, f"target snapshot {chain} in backend: not found"
            self.names[chain] = found[0].name
            self.client.stat(found[0].name)
        else:
            name = f"{self.namespace}/{next(_sequence)}/{chain}"
            self.client.commit(name, key, wanted)
            self.names[chain] = name
            self.unpacked.append(chain)
        return self.names[chain]

    def run(self, parent: str) -> str:
        """A container's writable snapshot; returns its overlay's lowerdir."""
        [mount] = self.client.prepare(f"{self.namespace}/{next(_sequence)}/container", parent)
        return next(option for option in mount.options if option.startswith("lowerdir="))[9:]


@pytest.fixture
def puller(client: SnapshotsClient) -> Iterator[Unpacker]:
    yield Unpacker(client)


def test_nothing_is_downloaded_and_the_container_gets_one_lower(puller: Unpacker, chains: FakeChains) -> None:
    """The whole image is one mount, whatever the number of its layers, and no label but the ref is needed."""
    top = chains.add(IMAGE)[-1]

    lower = puller.run(puller.pull(IMAGE))

    assert puller.unpacked == []
    assert lower == str(chains.path_of(top))
    assert chains.count("mount") == chains.count("mount", top)  # no prefix of it


def test_the_image_is_mounted_after_its_last_layer_without_being_asked(puller: Unpacker, chains: FakeChains) -> None:
    top = chains.add(IMAGE)[-1]

    puller.pull(IMAGE)

    until(lambda: top in chains.mounted(), "the early mount")
    assert list(chains.mounted()) == [top]


def test_the_hint_of_the_last_layer_is_taken(tmp_path: Path, chains: FakeChains) -> None:
    [chain] = chains.add(IMAGE[:1])
    with ServedSnapshotter(tmp_path / "patient", chains, quiet_seconds=3600) as served, served.client() as client:
        Unpacker(client).pull(IMAGE[:1], {IMAGE_LAYERS: str(IMAGE[0])})

        until(lambda: chain in chains.mounted(), "the mount")


def test_a_failed_early_mount_does_not_fail_the_pull(puller: Unpacker, chains: FakeChains) -> None:
    """The container's own Prepare tries again."""
    top = chains.add(IMAGE)[-1]
    chains.fault = _raise_on("mount", OSError(5, "first time"))
    name = puller.pull(IMAGE)
    until(lambda: chains.count("mount", top), "the early mount")
    with pytest.raises(grpc.RpcError) as caught:
        puller.run(name)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    chains.fault = lambda *_: None

    assert puller.run(name) == str(chains.path_of(top))


def test_a_second_namespace_shares_the_placeholders(
    puller: Unpacker, client: SnapshotsClient, chains: FakeChains
) -> None:
    chains.add(IMAGE)
    puller.pull(IMAGE)
    asked = chains.count("state")

    other = Unpacker(client, "default")

    assert other.pull(IMAGE) == puller.names[chain_ids(IMAGE)[-1]]
    assert chains.count("state") == asked
    assert len(client.list()) == len(IMAGE)


@pytest.mark.parametrize("state", ["unknown", "indexing", "failed"])
def test_an_image_that_can_not_be_served_is_unpacked_as_always(
    puller: Unpacker, chains: FakeChains, state: str
) -> None:
    """And the proxy is asked about its first layer only."""
    chains.add(IMAGE, state=state)

    lower = puller.run(puller.pull(IMAGE))

    assert puller.unpacked == chain_ids(IMAGE)
    assert len(lower.split(":")) == 3
    assert chains.count("state") == 1


def test_an_absent_proxy_does_not_stop_a_pull(puller: Unpacker, chains: FakeChains) -> None:
    chains.fault = _raise_on("state", ProxyUnreachableError(["http://127.0.0.1:1"], "refused"))

    puller.pull(IMAGE)

    assert puller.unpacked == chain_ids(IMAGE)


@pytest.mark.fault(
    "snapshotter: the proxy does not answer during a pull",
    done="it takes the question and never says anything",
    promised="the image is unpacked as always, within a bound",
)
def test_a_silent_proxy_does_not_stop_a_pull(
    tmp_path: Path, chains: FakeChains, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastpull.fuse_client.snapshotter.operations.ASK_SECONDS", 0.1)
    monkeypatch.setattr(FakeChains, "state", _never)
    with ServedSnapshotter(tmp_path / "n", chains, prepare_wait_seconds=0.1) as served, served.client() as client:
        puller = Unpacker(client)
        puller.pull(IMAGE)

    assert puller.unpacked == chain_ids(IMAGE)


def test_layers_above_an_unpacked_one_are_unpacked_too(puller: Unpacker, chains: FakeChains) -> None:
    """Served lazily from the first layer on, or from none: an image is never lazy on top of an unpacked layer."""
    puller.pull(IMAGE[:1])
    chains.add(IMAGE)

    puller.pull(IMAGE)

    assert puller.unpacked == chain_ids(IMAGE)


def test_an_unpacked_layer_stands_on_a_lazy_base(puller: Unpacker, chains: FakeChains) -> None:
    """Two images share a base that is served; the upper layer of one is not. The base's chain is mounted for it."""
    base = chains.add(IMAGE[:2])[-1]
    other = [*IMAGE[:2], Digest.of(b"private")]

    lower = puller.run(puller.pull(other))

    assert puller.unpacked == chain_ids(other)[2:]
    assert lower.split(":")[1:] == [str(chains.path_of(base))]


def test_another_namespaces_unpacked_layer_is_never_taken_for_ours(client: SnapshotsClient, chains: FakeChains) -> None:
    """It carries the same label and the same parent, and it was there first."""
    unpacked = Unpacker(client, "one")
    unpacked.pull(IMAGE)
    chains.add(IMAGE)

    lazy = Unpacker(client, "two")

    assert lazy.pull(IMAGE) == str(chain_ids(IMAGE)[-1])
    assert lazy.unpacked == []


@pytest.mark.parametrize("ref", ["not-a-digest", "sha256:ab", "../../etc", "sha512:" + "0" * 128])
def test_a_malformed_target_is_an_ordinary_prepare(client: SnapshotsClient, chains: FakeChains, ref: str) -> None:
    [mount] = client.prepare("k", "", {SNAPSHOT_REF: ref})

    assert mount.type == "bind"
    assert chains.calls == []


def test_a_chain_over_a_parent_that_is_not_its_own_is_unpacked(client: SnapshotsClient, chains: FakeChains) -> None:
    """A label may claim anything; a chain's layers hash to its name."""
    chains.add(IMAGE)
    [elsewhere] = chains.add([Digest.of(b"another base")])
    Unpacker(client).layer(elsewhere, "", {})

    [mount] = client.prepare("k", str(elsewhere), {SNAPSHOT_REF: str(chain_ids(IMAGE)[-1])})

    assert mount.type == "overlay"


# ------------------------------------------------------------------------------------- after the image


def test_removing_the_image_unmounts_it_at_cleanup(
    puller: Unpacker, client: SnapshotsClient, chains: FakeChains
) -> None:
    top = chains.add(IMAGE)[-1]
    puller.run(puller.pull(IMAGE))
    for info in [info for info in client.list() if info.kind == pb.ACTIVE]:
        client.remove(info.name)
    for chain in reversed(chain_ids(IMAGE)):
        client.remove(str(chain))
    assert top in chains.mounted()  # Remove touches the records only

    client.cleanup()

    assert chains.mounted() == {}
    assert client.list() == []


def test_an_image_pulled_again_before_cleanup_stays_mounted(
    puller: Unpacker, client: SnapshotsClient, chains: FakeChains
) -> None:
    top = chains.add(IMAGE)[-1]
    puller.run(puller.pull(IMAGE))
    for info in [info for info in client.list() if info.kind == pb.ACTIVE]:
        client.remove(info.name)
    for chain in reversed(chain_ids(IMAGE)):
        client.remove(str(chain))

    again = Unpacker(client).pull(IMAGE)
    client.cleanup()

    assert top in chains.mounted()
    assert Unpacker(client).run(again) == str(chains.path_of(top))


def test_a_failed_unmount_is_tried_again(client: SnapshotsClient, chains: FakeChains) -> None:
    [chain] = chains.add(IMAGE[:1])
    puller = Unpacker(client)
    puller.pull(IMAGE[:1])
    until(lambda: chain in chains.mounted(), "the early mount")
    client.remove(str(chain))
    chains.fault = _raise_on("unmount", OSError(16, "busy"))
    client.cleanup()
    assert chain in chains.mounted()

    chains.fault = lambda *_: None
    client.cleanup()

    assert chains.mounted() == {}


def test_a_placeholder_takes_no_space_of_its_own(puller: Unpacker, client: SnapshotsClient, chains: FakeChains) -> None:
    chains.add(IMAGE)

    assert client.usage(puller.pull(IMAGE)) == (0, 0)


# ------------------------------------------------------------------------------------- a lost database


def test_lost_placeholders_come_back_from_the_proxy(client: SnapshotsClient, chains: FakeChains) -> None:
    """containerd asks for a name that is a chainID; every layer below it comes back too, with the ref label."""
    every = chains.add(IMAGE)

    info = client.stat(str(every[-1]))

    assert (info.kind, info.parent) == (pb.COMMITTED, str(every[-2]))
    assert [(i.name, i.parent, i.labels[SNAPSHOT_REF]) for i in client.list()] == [
        (str(chain), str(below) if below else "", str(chain))
        for below, chain in zip([None, *every], every, strict=False)
    ]


def test_a_container_starts_on_a_lost_placeholder(client: SnapshotsClient, chains: FakeChains) -> None:
    top = chains.add(IMAGE)[-1]

    assert Unpacker(client).run(str(top)) == str(chains.path_of(top))


def test_an_unknown_chain_is_not_found(client: SnapshotsClient) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.stat(str(Digest.of(b"nobody knows")))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.fault(
    "hostile input: a chain that is not what its layers hash to",
    done="the proxy names the layers of another",
    promised="not believed",
)
def test_layers_that_do_not_hash_to_the_chain_are_not_believed(client: SnapshotsClient, chains: FakeChains) -> None:
    chain, other = chains.add(IMAGE[:1])[0], chains.add(IMAGE[1:2])[0]
    chains._states[chain] = chains._states[other]

    with pytest.raises(grpc.RpcError) as caught:
        client.stat(str(chain))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert client.list() == []


def test_without_a_proxy_a_lost_placeholder_is_unavailable_not_gone(
    client: SnapshotsClient, chains: FakeChains
) -> None:
    chains.fault = _raise_on("state", ProxyUnreachableError(["http://127.0.0.1:1"], "refused"))

    with pytest.raises(grpc.RpcError) as caught:
        client.stat(str(IMAGE[0]))

    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "proxies" in str(caught.value.details())  # the remedy


# ------------------------------------------------------------------------------------------ being busy


def test_answers_from_memory_do_not_wait_for_mounts(
    served: ServedSnapshotter, puller: Unpacker, client: SnapshotsClient, chains: FakeChains
) -> None:
    chains.add(IMAGE)
    name = puller.pull(IMAGE)
    gate = served.on_loop(_hold(chains))
    with pytest.raises(grpc.RpcError) as caught:
        client.prepare("impatient", name, seconds=0.5)
    assert caught.value.code() in LATE

    assert client.stat(name).name == name

    served.loop.call_soon_threadsafe(gate.set)
    until(lambda: "impatient" not in [info.name for info in client.list()], "nothing is kept of it")
    client.prepare("impatient", name)


def test_after_a_restart_mounts_wait_for_the_daemon_to_take_over(tmp_path: Path, chains: FakeChains) -> None:
    """Meanwhile everything is answered that needs no mount."""
    top = chains.add(IMAGE)[-1]
    with ServedSnapshotter(tmp_path / "node", chains) as served, served.client() as client:
        puller = Unpacker(client)
        name = puller.pull(IMAGE)
        client.prepare("container", name)
    chains._mounted.clear()

    again = ServedSnapshotter(tmp_path / "node", chains, allow_mounts=False)
    with again, again.client() as client:
        assert client.stat(name).kind == pb.COMMITTED
        with pytest.raises(grpc.RpcError) as caught:
            client.prepare("early", name, seconds=0.3)
        assert caught.value.code() in LATE
        assert chains.mounted() == {}
        again.allow_mounts()
        assert client.mounts("container")[0].type == "overlay"
        assert top in chains.mounted()


@pytest.mark.fault(
    "snapshotter: directories and mounts that no record names",
    done="left over by a crash, then a new start",
    promised="removed, mounts first",
)
def test_leftovers_of_a_crash_are_removed_at_the_next_start(tmp_path: Path, chains: FakeChains) -> None:
    """Directories without a record, trash, and mounts of released chains: without a call of containerd's."""
    top = chains.add(IMAGE[:1])[-1]
    node = tmp_path / "node"
    with ServedSnapshotter(node, chains) as served, served.client() as client:
        Unpacker(client).pull(IMAGE[:1])
        until(lambda: top in chains.mounted(), "the early mount")
        client.remove(str(top))
        kept = client.prepare("kept")[0].source
    (node / "snapshots" / "77" / "fs" / "deep").mkdir(parents=True)
    (node / "snapshots" / "removing" / "old-1").mkdir(parents=True)

    with ServedSnapshotter(node, chains) as served, served.client() as client:
        until(lambda: not (node / "snapshots" / "77").exists(), "the stray directory is gone")
        until(lambda: not list((node / "snapshots" / "removing").iterdir()), "the trash is empty")
        assert chains.mounted() == {}
        assert client.mounts("kept")[0].source == kept


def _raise_on(what: str, error: Exception):  # type: ignore[no-untyped-def]
    def fault(called: str, _chain: Digest) -> None:
        if called == what:
            raise error

    return fault


async def _hold(chains: FakeChains):  # type: ignore[no-untyped-def]
    chains._mounted.clear()
    return chains.hold_mounts()


async def _never(*_: object) -> None:
    import asyncio

    await asyncio.Event().wait()
