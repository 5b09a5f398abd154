"""From a container to its chain."""

from __future__ import annotations

from fastpull.fuse_client.snapshotter.containers import chain_of
from fastpull.fuse_client.snapshotter.records import Kind, Snapshot

LOW, HIGH = ("sha256:" + digit * 64 for digit in "12")
ID = "0123456789abcdef" * 4


def snapshot(name: str, parent: str = "", lazy_chain: str = "", kind: Kind = Kind.ACTIVE) -> Snapshot:
    return Snapshot(id=1, name=name, parent=parent, kind=kind, created_ns=0, updated_ns=0, lazy_chain=lazy_chain)


SNAPSHOTS = [
    snapshot("k8s.io/1/low", lazy_chain=LOW, kind=Kind.COMMITTED),
    snapshot("k8s.io/2/high", "k8s.io/1/low", lazy_chain=HIGH, kind=Kind.COMMITTED),
    snapshot("k8s.io/3/upper", "k8s.io/2/high", kind=Kind.COMMITTED),
    snapshot(f"k8s.io/4/{ID}", "k8s.io/2/high"),
    snapshot("default/5/mixed", "k8s.io/3/upper"),
    snapshot("default/6/plain"),
]


def test_a_container_is_found_by_its_id_its_begin_or_its_whole_name() -> None:
    """Its chain is the one right below it; layers unpacked on top of a chain are passed."""
    for name in (ID, ID[:12], f"k8s.io/4/{ID}", "mixed"):
        assert str(chain_of(SNAPSHOTS, name)) == HIGH


def test_what_names_no_container_or_two_is_not_guessed() -> None:
    """Committed snapshots are no containers, and short prefixes name nothing."""
    other = snapshot(f"default/7/{ID[:20]}ffff", "k8s.io/1/low")
    for name in ("plain", "upper", "high", "01234", "", "absent-container"):
        assert chain_of(SNAPSHOTS, name) is None
    assert chain_of([*SNAPSHOTS, other], ID[:12]) is None
