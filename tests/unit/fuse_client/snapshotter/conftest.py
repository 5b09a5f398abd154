"""A snapshotter on a socket, over chains that need no proxy and no privileges."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.chains import FakeChains
from harness.snapshots import ServedSnapshotter, SnapshotsClient


@pytest.fixture
def chains(tmp_path: Path) -> FakeChains:
    root = tmp_path / "chains"
    root.mkdir()
    return FakeChains(root)


@pytest.fixture
def served(tmp_path: Path, chains: FakeChains) -> Iterator[ServedSnapshotter]:
    with ServedSnapshotter(tmp_path / "node", chains) as served:
        yield served


@pytest.fixture
def client(served: ServedSnapshotter) -> Iterator[SnapshotsClient]:
    with served.client() as client:
        yield client
