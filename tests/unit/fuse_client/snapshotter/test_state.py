"""Any sequence of calls leaves the records as containerd's own storage would."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from fastpull.cache.digest import Digest, chain_ids
from fastpull.cache.errors import StoreFullError
from fastpull.fuse_client.snapshotter.errors import (
    SnapshotError,
    SnapshotExistsError,
    SnapshotInvalidError,
    SnapshotNotFoundError,
    SnapshotPreconditionError,
)
from fastpull.fuse_client.snapshotter.records import Kind, Snapshot
from fastpull.fuse_client.snapshotter.state import Change, Loaded, SnapshotState

CHAINS = chain_ids([Digest.of(b"a"), Digest.of(b"b"), Digest.of(b"c")])


@dataclass
class MemoryJournal:
    """Keeps encoded records, so that nothing is shared with the state."""

    records: dict[int, bytes] = field(default_factory=dict)
    released: set[Digest] = field(default_factory=set)
    is_full: bool = False

    def load(self) -> Loaded:
        decode = msgspec.msgpack.Decoder(Snapshot).decode
        return Loaded(snapshots=[decode(data) for data in self.records.values()], released=set(self.released))

    def apply(self, change: Change) -> None:
        if self.is_full:
            raise StoreFullError("disk full")
        for record in change.put:
            self.records[record.id] = msgspec.msgpack.encode(record)
        for snapshot_id in change.delete:
            del self.records[snapshot_id]
        self.released = (self.released | set(change.release)) - set(change.settle)


@dataclass
class Model:
    """One record, in the plainest words."""

    kind: str
    parent: str
    labels: dict[str, str]


NAMES = st.sampled_from([f"k{number}" for number in range(6)] + [str(chain) for chain in CHAINS])
LABELS = st.dictionaries(st.sampled_from("xyz"), st.sampled_from("12"), max_size=2)


class StateMachine(RuleBasedStateMachine):
    names = Bundle("names")

    def __init__(self) -> None:
        super().__init__()
        self.journal = MemoryJournal()
        self.state = SnapshotState(self.journal, clock=iter(range(10**9)).__next__)
        self.model: dict[str, Model] = {}

    @rule(target=names, name=NAMES)
    def name(self, name: str) -> str:
        return name

    @rule(
        key=names, parent=st.one_of(st.just(""), names), kind=st.sampled_from([Kind.ACTIVE, Kind.VIEW]), labels=LABELS
    )
    def create(self, key: str, parent: str, kind: Kind, labels: dict[str, str]) -> None:
        expected: type[Exception] | None = None
        if parent and parent not in self.model:
            expected = SnapshotNotFoundError
        elif parent and self.model[parent].kind != "COMMITTED":
            expected = SnapshotInvalidError
        elif key in self.model:
            expected = SnapshotExistsError
        if self.outcome(expected, lambda: self.state.create(self.state.reserve_id(), kind, key, parent, labels)):
            self.model[key] = Model(kind.name, parent, labels)

    @rule(name=names, key=names, labels=LABELS)
    def commit(self, name: str, key: str, labels: dict[str, str]) -> None:
        expected: type[Exception] | None = None
        if name in self.model:
            expected = SnapshotExistsError
        elif key not in self.model:
            expected = SnapshotNotFoundError
        elif self.model[key].kind != "ACTIVE":
            expected = SnapshotPreconditionError
        if self.outcome(expected, lambda: self.state.commit(name, key, "", labels)):
            self.model[name] = Model("COMMITTED", self.model.pop(key).parent, labels)

    @rule(key=names)
    def remove(self, key: str) -> None:
        expected: type[Exception] | None = None
        if key not in self.model:
            expected = SnapshotNotFoundError
        elif any(one.parent == key for one in self.model.values()):
            expected = SnapshotPreconditionError
        if self.outcome(expected, lambda: self.state.remove(key)):
            del self.model[key]

    @rule(count=st.integers(1, 3), labels=LABELS)
    def place(self, count: int, labels: dict[str, str]) -> None:
        chains = CHAINS[:count]
        placed = {record.name for record in self.state.all() if record.lazy_chain}
        taken = any(str(chain) in self.model and str(chain) not in placed for chain in chains)
        expected = SnapshotExistsError if taken else None
        if self.outcome(expected, lambda: self.state.place(chains, labels, ref_label="ref")):
            parent = ""
            for chain in chains:
                own = labels if chain == chains[-1] else {}
                self.model.setdefault(str(chain), Model("COMMITTED", parent, {**own, "ref": str(chain)}))
                parent = str(chain)

    @rule(name=names, labels=LABELS)
    def relabel(self, name: str, labels: dict[str, str]) -> None:
        expected = None if name in self.model else SnapshotNotFoundError
        if self.outcome(expected, lambda: self.state.relabel(name, labels, ["labels.x"])):
            kept = {key: value for key, value in self.model[name].labels.items() if key != "x"}
            self.model[name].labels = kept | ({"x": labels["x"]} if "x" in labels else {})

    @rule()
    def restart(self) -> None:
        self.state = SnapshotState(self.journal, clock=iter(range(10**9)).__next__)

    @rule()
    def disk_is_full(self) -> None:
        """A change that can not be kept has not happened."""
        self.journal.is_full = True
        with pytest.raises(StoreFullError):
            self.state.create(self.state.reserve_id(), Kind.VIEW, "never", "", {})
        self.journal.is_full = False

    @invariant()
    def memory_disk_and_model_agree(self) -> None:
        seen = {record.name: Model(record.kind.name, record.parent, record.labels) for record in self.state.all()}
        assert seen == self.model
        assert sorted(self.journal.load().snapshots, key=lambda r: r.id) == sorted(self.state.all(), key=lambda r: r.id)
        ids = [record.id for record in self.state.all()]
        assert len(set(ids)) == len(ids)

    @invariant()
    def released_chains_have_no_placeholder(self) -> None:
        placed = {record.chain for record in self.state.all() if record.lazy_chain}
        assert placed.isdisjoint(self.state.released())
        assert set(self.state.released()) == self.journal.released

    def outcome(self, expected: type[Exception] | None, call) -> bool:  # type: ignore[no-untyped-def]
        """Whether the call went through, as expected."""
        if expected is None:
            call()
            return True
        with pytest.raises(SnapshotError) as caught:
            call()
        assert type(caught.value) is expected
        return False


StateMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestState = StateMachine.TestCase
