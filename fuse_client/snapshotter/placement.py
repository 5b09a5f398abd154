"""Which mounts make a snapshot. Pure.

The shapes are those of containerd's own overlay snapshotter (``plugins/snapshots/overlay``), because its
differ, ``mount.ReadOnly`` and the shims rely on them: one ``bind``, or one ``overlay`` whose options are
``workdir=``, ``upperdir=``, ``lowerdir=``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from fastpull.cache.digest import Digest
from fastpull.fuse_client.snapshotter.errors import SnapshotPreconditionError
from fastpull.fuse_client.snapshotter.records import Kind, Snapshot

MAX_LOWERS = 500  # OVL_MAX_STACK of the kernel


class MountSpec(NamedTuple):
    """One mount(2) call for containerd to make: ``containerd.types.Mount``."""

    type: str
    source: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Lowers:
    """What lies under a snapshot: unpacked layers, uppermost first, on at most one lazy chain.

    A chain's mount already holds everything from its layer down to the base, so nothing below a
    placeholder matters.
    """

    unpacked: tuple[int, ...] = ()  # snapshot ids
    chain: Digest | None = None


def lowers_of(line: Sequence[Snapshot]) -> Lowers:
    """``line``: the parent, its parent, … down to the base; empty for a snapshot without parent."""
    unpacked: list[int] = []
    for snapshot in line:
        if (chain := snapshot.chain) is not None:
            return Lowers(tuple(unpacked), chain)
        unpacked.append(snapshot.id)
    return Lowers(tuple(unpacked))


def plan_mounts(
    kind: Kind, upper: Path, work: Path, lowers: Sequence[Path], *, overlay_options: Sequence[str] = ()
) -> tuple[MountSpec, ...]:
    """The mounts of an active or view snapshot over ``lowers``, uppermost first.

    Raise ``SnapshotPreconditionError`` for more layers than the kernel can stack.
    """
    if len(lowers) > MAX_LOWERS:
        raise SnapshotPreconditionError(
            f"{len(lowers)} unpacked layers, the kernel's overlay takes {MAX_LOWERS}; squash the image's layers"
        )
    access = "rw" if kind is Kind.ACTIVE else "ro"
    if not lowers:
        return (MountSpec("bind", str(upper), (access, "rbind")),)
    lowerdir = "lowerdir=" + ":".join(map(str, lowers))
    if kind is Kind.ACTIVE:
        return (MountSpec("overlay", "overlay", (*overlay_options, f"workdir={work}", f"upperdir={upper}", lowerdir)),)
    if len(lowers) == 1:
        return (MountSpec("bind", str(lowers[0]), (access, "rbind")),)
    return (MountSpec("overlay", "overlay", (*overlay_options, lowerdir)),)
