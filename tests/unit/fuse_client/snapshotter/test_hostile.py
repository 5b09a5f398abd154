"""Names and labels come from image authors, pods and clients. Whatever they are, the answer is an answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from fakes.chains import FakeChains
from harness.snapshots import ServedSnapshotter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastpull.cache.digest import Digest
from fastpull.fuse_client.snapshotter.errors import SnapshotError
from fastpull.fuse_client.snapshotter.labels import IMAGE_LAYERS, SNAPSHOT_REF, checked_labels
from fastpull.fuse_client.snapshotter.operations import Snapshotter

KNOWN = Digest.of(b"known")
# What protobuf lets through: any text without surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NAMES = st.one_of(
    TEXT,
    st.sampled_from(["", "../../../etc", "/", ".", "a\0b", "k" * 5000, str(KNOWN), "sha256:" + "A" * 64, "removing"]),
)
LABELS = st.dictionaries(st.one_of(TEXT, st.sampled_from([SNAPSHOT_REF, IMAGE_LAYERS])), NAMES, max_size=4)


@pytest.fixture(scope="module")
def snapshotter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Snapshotter]:
    root = tmp_path_factory.mktemp("hostile")
    chains = FakeChains(root / "chains")
    chains.root.mkdir()
    chains.add([KNOWN])
    with ServedSnapshotter(root / "node", chains) as served:
        yield served.snapshotter
        assert_nothing_escaped(root)


@pytest.mark.fault(
    "hostile input: requests to the snapshotter",
    done="random names, labels and field lists in every call",
    promised="done or refused with a reason; nothing is made outside of its directories",
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=NAMES, parent=NAMES, name=NAMES, labels=LABELS, fields=st.lists(TEXT, max_size=3))
def test_any_request_is_done_or_refused_with_a_reason(
    snapshotter: Snapshotter, key: str, parent: str, name: str, labels: dict[str, str], fields: list[str]
) -> None:
    for call in (
        lambda: snapshotter.prepare(key, parent, labels),
        lambda: snapshotter.view(key, parent, labels),
        lambda: snapshotter.mounts(key),
        lambda: snapshotter.update(key, labels, fields),
        lambda: snapshotter.usage(key),
        lambda: snapshotter.commit(name, key, parent, labels),
        lambda: snapshotter.stat(name),
        lambda: snapshotter.remove(name),
        lambda: snapshotter.remove(key),
    ):
        with suppress(SnapshotError):
            call()


def assert_nothing_escaped(root: Path) -> None:
    """Directories are named by number: no name ever becomes a path."""
    assert {path.name for path in root.iterdir()} == {"chains", "node"}
    for path in (root / "node" / "snapshots").iterdir():
        assert path.name.isdecimal() or path.name == "removing"


@given(labels=LABELS)
def test_kept_labels_are_within_containerds_limits(labels: dict[str, str]) -> None:
    with suppress(SnapshotError):
        for key, value in checked_labels(labels).items():
            assert value
            assert len(key.encode()) + len(value.encode()) <= 4096
