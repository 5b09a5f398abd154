"""Which mounts make a snapshot."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastpull.cache.digest import Digest
from fastpull.fuse_client.snapshotter.errors import SnapshotPreconditionError
from fastpull.fuse_client.snapshotter.placement import Lowers, MountSpec, lowers_of, plan_mounts
from fastpull.fuse_client.snapshotter.records import Kind, Snapshot

CHAIN = Digest.of(b"chain")
UPPER, WORK = Path("/s/9/fs"), Path("/s/9/work")
A, B = Path("/s/2/fs"), Path("/s/1/fs")


def snapshot(number: int, *, lazy: bool = False) -> Snapshot:
    chain = str(CHAIN) if lazy else ""
    return Snapshot(id=number, name=f"n{number}", kind=Kind.COMMITTED, created_ns=0, updated_ns=0, lazy_chain=chain)


@pytest.mark.parametrize(
    ("line", "lowers"),
    [
        pytest.param([], Lowers(), id="no-parent"),
        pytest.param([snapshot(3), snapshot(1)], Lowers((3, 1)), id="unpacked"),
        pytest.param([snapshot(3, lazy=True), snapshot(1, lazy=True)], Lowers((), CHAIN), id="lazy"),
        pytest.param([snapshot(5), snapshot(4), snapshot(3, lazy=True)], Lowers((5, 4), CHAIN), id="mixed"),
    ],
)
def test_below_the_first_placeholder_nothing_matters(line: list[Snapshot], lowers: Lowers) -> None:
    assert lowers_of(line) == lowers


@pytest.mark.parametrize(
    ("kind", "lowers", "mount"),
    [
        pytest.param(Kind.ACTIVE, [], MountSpec("bind", "/s/9/fs", ("rw", "rbind")), id="active"),
        pytest.param(Kind.VIEW, [], MountSpec("bind", "/s/9/fs", ("ro", "rbind")), id="view"),
        pytest.param(Kind.VIEW, [A], MountSpec("bind", "/s/2/fs", ("ro", "rbind")), id="view-of-one"),
        pytest.param(
            Kind.VIEW, [A, B], MountSpec("overlay", "overlay", ("lowerdir=/s/2/fs:/s/1/fs",)), id="view-of-two"
        ),
        pytest.param(
            Kind.ACTIVE,
            [A, B],
            MountSpec("overlay", "overlay", ("workdir=/s/9/work", "upperdir=/s/9/fs", "lowerdir=/s/2/fs:/s/1/fs")),
            id="active-over-two",
        ),
    ],
)
def test_the_mounts_have_the_shapes_that_containerd_knows(kind: Kind, lowers: list[Path], mount: MountSpec) -> None:
    assert plan_mounts(kind, UPPER, WORK, lowers) == (mount,)


def test_overlay_options_come_first() -> None:
    [mount] = plan_mounts(Kind.ACTIVE, UPPER, WORK, [A], overlay_options=("index=off",))

    assert mount.options[0] == "index=off"


def test_more_layers_than_the_kernel_stacks_are_refused() -> None:
    lowers = [Path(f"/s/{number}/fs") for number in range(501)]

    plan_mounts(Kind.ACTIVE, UPPER, WORK, lowers[:500])
    with pytest.raises(SnapshotPreconditionError, match="squash"):
        plan_mounts(Kind.ACTIVE, UPPER, WORK, lowers)
