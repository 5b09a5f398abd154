"""containerd's ``core/snapshots/testsuite``, as far as it needs no mounts, over gRPC."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes.chains import FakeChains
from harness.snapshots import ServedSnapshotter, SnapshotsClient

from fastpull.fuse_client.snapshotter.pb import snapshots_pb2 as pb


@contextmanager
def refused(code: str) -> Iterator[None]:
    with pytest.raises(grpc.RpcError) as caught:
        yield
    assert caught.value.code() is grpc.StatusCode[code], caught.value.details()


def options_of(mount: Any) -> dict[str, str]:
    return {key: value for key, _, value in (option.partition("=") for option in mount.options)}


def committed(client: SnapshotsClient, *names: str) -> None:
    """A stack of unpacked layers."""
    parent = ""
    for name in names:
        client.prepare(f"{name}-extract", parent)
        client.commit(name, f"{name}-extract")
        parent = name


def test_a_first_layer_is_a_writable_bind_mount(client: SnapshotsClient) -> None:
    [mount] = client.prepare("k1")

    assert (mount.type, list(mount.options), mount.target) == ("bind", ["rw", "rbind"], "")
    assert Path(mount.source).stat().st_mode & 0o7777 == 0o755


def test_a_layer_over_others_is_one_overlay_with_the_nearest_parent_first(client: SnapshotsClient) -> None:
    committed(client, "a", "b", "c")

    [mount] = client.prepare("k", "c")

    options = options_of(mount)
    assert (mount.type, mount.source) == ("overlay", "overlay")
    lowers = options["lowerdir"].split(":")
    assert lowers[-1] == client.view("see-a", "a")[0].source
    assert lowers[-2:] == options_of(client.view("see-b", "b")[0])["lowerdir"].split(":")
    assert len(lowers) == 3
    assert Path(options["upperdir"]).is_dir()
    assert Path(options["workdir"]).is_dir()
    assert Path(options["upperdir"]).parent == Path(options["workdir"]).parent


def test_views_are_read_only(client: SnapshotsClient) -> None:
    """No parent: an empty directory; one parent: its directory; more: an overlay without an upper one."""
    committed(client, "a", "b")

    assert list(client.view("v0")[0].options) == ["ro", "rbind"]
    [one] = client.view("v1", "a")
    assert (one.type, list(one.options)) == ("bind", ["ro", "rbind"])
    [two] = client.view("v2", "b")
    assert set(options_of(two)) - {"index"} == {"lowerdir"}
    with refused("FAILED_PRECONDITION"):
        client.commit("never", "v1")


def test_a_parent_must_be_there_and_committed(client: SnapshotsClient) -> None:
    client.prepare("active")

    for call in (client.prepare, client.view):
        with refused("NOT_FOUND"):
            call("k", "missing")
        with refused("INVALID_ARGUMENT"):
            call("k", "active")


def test_keys_and_names_share_one_space(client: SnapshotsClient) -> None:
    committed(client, "a")
    client.prepare("k", "a")

    for key in ("a", "k"):
        for call in (client.prepare, client.view):
            with refused("ALREADY_EXISTS"):
                call(key)
    with refused("ALREADY_EXISTS"):
        client.commit("a", "k")


def test_commit_renames_and_replaces_the_labels(client: SnapshotsClient) -> None:
    committed(client, "base")
    client.prepare("k", "base", {"containerd.io/snapshot/old": "1"})

    client.commit("name", "k", {"containerd.io/snapshot/new": "2"})

    info = client.stat("name")
    assert (info.kind, info.parent) == (pb.COMMITTED, "base")
    assert dict(info.labels) == {"containerd.io/snapshot/new": "2"}
    with refused("NOT_FOUND"):
        client.stat("k")
    client.prepare("k", "name")  # the key may be used again


def test_only_an_active_snapshot_can_be_committed(client: SnapshotsClient) -> None:
    committed(client, "a")

    with refused("NOT_FOUND"):
        client.commit("n", "missing")
    with refused("FAILED_PRECONDITION"):
        client.commit("n", "a")
    client.prepare("k", "a")
    with refused("FAILED_PRECONDITION"):
        client.commit("n", "k", parent="other")  # a rebase, which we do not offer


def test_mounts_are_for_active_snapshots_and_views_and_stay_the_same(client: SnapshotsClient) -> None:
    committed(client, "a")
    prepared, viewed = client.prepare("k", "a"), client.view("v", "a")

    assert client.mounts("k") == prepared
    assert client.mounts("v") == viewed
    with refused("FAILED_PRECONDITION"):
        client.mounts("a")
    with refused("NOT_FOUND"):
        client.mounts("missing")


def test_remove_goes_leaf_first(client: SnapshotsClient, served: ServedSnapshotter) -> None:
    committed(client, "a", "b")
    client.prepare("k", "b")

    for name in ("a", "b"):
        with refused("FAILED_PRECONDITION"):
            client.remove(name)
    for name in ("k", "b", "a"):
        client.remove(name)
        with refused("NOT_FOUND"):
            client.stat(name)
        with refused("NOT_FOUND"):
            client.remove(name)
    assert client.list() == []
    client.cleanup()
    assert [entry.name for entry in (served.root / "snapshots").iterdir()] == ["removing"]


def test_a_removed_key_is_free_at_once(client: SnapshotsClient) -> None:
    """Also before Cleanup, and with a directory of its own."""
    [first] = client.prepare("k")
    client.remove("k")

    [second] = client.prepare("k")

    assert first.source != second.source


def test_update_changes_labels_only(client: SnapshotsClient) -> None:
    committed(client, "a")

    one = client.update("a", {"containerd.io/snapshot/x": "1", "ignored": "2"}, ["labels.containerd.io/snapshot/x"])
    assert dict(one.labels) == {"containerd.io/snapshot/x": "1"}
    two = client.update("a", {"l1": "v1", "l2": "v2"})
    assert dict(two.labels) == {"l1": "v1", "l2": "v2"}
    three = client.update("a", {"l2": "v3"}, ["labels.l1", "labels.l2"])
    assert dict(three.labels) == {"l2": "v3"}
    assert client.stat("a") == three
    assert three.kind == pb.COMMITTED
    assert (three.updated_at.seconds, three.updated_at.nanos) > (three.created_at.seconds, three.created_at.nanos)
    with refused("INVALID_ARGUMENT"):
        client.update("a", {}, ["parent"])
    with refused("NOT_FOUND"):
        client.update("missing", {}, ["labels"])


def test_list_streams_everything_and_leaves_filters_to_containerd(client: SnapshotsClient) -> None:
    for number in range(205):
        client.prepare(f"k{number}")

    names = [info.name for info in client.list('kind=="committed"')]

    assert names == [f"k{number}" for number in range(205)]


def test_what_a_snapshot_takes_excludes_its_parents(client: SnapshotsClient) -> None:
    [mount] = client.prepare("a-extract")
    (Path(mount.source) / "file").write_bytes(b"x" * 10_000)
    client.commit("a", "a-extract")
    size, inodes = client.usage("a")
    [over] = client.prepare("k", "a")

    assert size >= 10_000
    assert inodes == 2
    assert client.usage("k")[1] == 1
    (Path(options_of(over)["upperdir"]) / "late").write_bytes(b"y" * 5_000)
    client.commit("b", "k")
    assert client.usage("b")[0] >= 5_000
    with refused("NOT_FOUND"):
        client.usage("missing")


def test_128_layers_stack(client: SnapshotsClient) -> None:
    committed(client, *(f"layer-{number}" for number in range(128)))

    [mount] = client.prepare("k", "layer-127")

    assert len(options_of(mount)["lowerdir"].split(":")) == 128


@pytest.mark.parametrize(
    ("key", "labels"),
    [
        pytest.param("", {}, id="no-key"),
        pytest.param("k" * 5000, {}, id="long-key"),
        pytest.param("k", {"containerd.io/snapshot/x": "y" * 5000}, id="long-label"),
        pytest.param("k", {f"containerd.io/snapshot/{n}": "1" for n in range(1000)}, id="many-labels"),
    ],
)
def test_a_request_beyond_the_limits_is_refused(client: SnapshotsClient, key: str, labels: dict[str, str]) -> None:
    with refused("INVALID_ARGUMENT"):
        client.prepare(key, "", labels)
    assert client.list() == []


def test_everything_is_there_again_after_a_restart(tmp_path: Path, chains: FakeChains) -> None:
    """And answered before any mount is allowed."""
    served = ServedSnapshotter(tmp_path / "node", chains)
    with served, served.client() as client:
        committed(client, "a", "b")
        client.prepare("k", "b", {"containerd.io/snapshot/x": "1"})
        client.usage("a")
        before, mounts = client.list(), client.mounts("k")

    again = ServedSnapshotter(tmp_path / "node", chains, allow_mounts=False)
    with again, again.client() as client:
        assert client.list() == before
        assert client.mounts("k") == mounts
        assert client.prepare("k2", "b")[0].type == "overlay"


def test_a_second_server_does_not_take_the_socket_away(served: ServedSnapshotter, client: SnapshotsClient) -> None:
    from fastpull.fuse_client.errors import DaemonError

    other = ServedSnapshotter(served.root.parent / "other", FakeChains(served.root))
    other.socket = served.socket
    with pytest.raises(DaemonError, match="another process"):
        other.start()
    other.abandon()
    client.prepare("k")
