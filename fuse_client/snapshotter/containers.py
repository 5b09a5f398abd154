"""From a container to the chain that it runs from."""

from __future__ import annotations

from collections.abc import Iterable

from fastpull.cache.digest import Digest
from fastpull.fuse_client.snapshotter.records import Kind, Snapshot

MIN_PREFIX = 6  # characters; as people copy them out of listings


def chain_of(snapshots: Iterable[Snapshot], container: str) -> Digest | None:
    """The chain below a container's snapshot, which is named ``<namespace>/<number>/<container>``.

    ``container`` is that name, its last part, or the begin of its last part. None when there is no such
    container, when several fit that run from different chains, or when it runs from unpacked layers. Pure.
    """
    by_name = {snapshot.name: snapshot for snapshot in snapshots}
    keys = {name: name.rpartition("/")[2] for name, snapshot in by_name.items() if snapshot.kind is not Kind.COMMITTED}
    found = [name for name, key in keys.items() if container in (name, key)]
    if not found and len(container) >= MIN_PREFIX:
        found = [name for name, key in keys.items() if key.startswith(container)]
    chains = {_chain_below(by_name, name) for name in found}
    return chains.pop() if len(chains) == 1 else None


def _chain_below(by_name: dict[str, Snapshot], name: str) -> Digest | None:
    seen: set[str] = set()
    while name and name not in seen and (snapshot := by_name.get(name)) is not None:
        if snapshot.lazy_chain:
            return Digest.parse(str(snapshot.lazy_chain))
        seen.add(name)
        name = snapshot.parent
    return None
