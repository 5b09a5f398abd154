"""The records of all snapshots, with the semantics of containerd's ``core/snapshots/storage`` (bolt.go).

Reads come from memory and never wait. A change is durable before it is visible, so that containerd's own
metadata, durable too, never knows a snapshot that we have forgotten.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from fastpull.cache.digest import Digest
from fastpull.fuse_client.snapshotter.errors import (
    SnapshotExistsError,
    SnapshotInvalidError,
    SnapshotNotFoundError,
    SnapshotPreconditionError,
)
from fastpull.fuse_client.snapshotter.records import Kind, Snapshot, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What one transaction writes."""

    put: tuple[Snapshot, ...] = ()
    delete: tuple[int, ...] = ()  # ids
    release: tuple[Digest, ...] = ()  # chains that no placeholder stands for any more: unmount them
    settle: tuple[Digest, ...] = ()  # released chains that are unmounted, or in use again


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What was there at the start."""

    snapshots: list[Snapshot] = field(default_factory=list)
    released: set[Digest] = field(default_factory=set)
    lost_ids: set[int] = field(default_factory=set)  # records that can not be read: their files stay


class Journal(Protocol):
    """Where changes are kept. ``LmdbJournal`` in production."""

    def load(self) -> Loaded: ...

    def apply(self, change: Change) -> None:
        """Write the change: all of it or nothing, durable on return."""
        ...


class SnapshotState:
    """Invariants: names are unique; a parent exists, is committed and stays while it has children;
    a placeholder is named by its chain, and its parent, if any, is a placeholder of the chain below.

    Thread-safe. Lookups take no lock: records are immutable, and a dict lookup is atomic.
    """

    def __init__(self, journal: Journal, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._journal = journal
        self._clock = clock
        self._changing = threading.Lock()
        loaded = journal.load()
        self._released = set(loaded.released)
        self._by_name = {record.name: record for record in loaded.snapshots}
        self._ids = {record.id for record in loaded.snapshots} | loaded.lost_ids
        self._children = Counter(record.parent for record in loaded.snapshots if record.parent)
        self._last_id = max(self._ids, default=0)

    def __len__(self) -> int:
        return len(self._by_name)

    # ------------------------------------------------------------------------------------- looking

    def find(self, name: str) -> Snapshot | None:
        return self._by_name.get(name)

    def get(self, name: str) -> Snapshot:
        """Raise ``SnapshotNotFoundError``."""
        record = self._by_name.get(name)
        if record is None:
            raise SnapshotNotFoundError(f"snapshot {name!r} does not exist")
        return record

    def line(self, name: str) -> list[Snapshot]:
        """The snapshot, its parent, … down to the base; nothing for the empty name."""
        line: list[Snapshot] = []
        while name:
            line.append(self.get(name))
            name = line[-1].parent
        return line

    def all(self) -> list[Snapshot]:
        """Placeholders first, then by age.

        After ALREADY_EXISTS containerd takes the first listed snapshot whose label and parent fit. A layer
        that another namespace unpacked itself may carry the same label; ours has to win.
        """
        return sorted(self._records(), key=lambda record: (not record.lazy_chain, record.id))

    def has_id(self, snapshot_id: int) -> bool:
        return snapshot_id in self._ids

    def released(self) -> list[Digest]:
        with self._changing:
            return sorted(self._released)

    def check_new(self, key: str, parent: str) -> None:
        """Raise what ``create`` would raise."""
        if parent:
            base = self._by_name.get(parent)
            if base is None:
                raise SnapshotNotFoundError(f"parent snapshot {parent!r} does not exist")
            if base.kind is not Kind.COMMITTED:
                raise SnapshotInvalidError(f"parent {parent!r} is not a committed snapshot")
        if key in self._by_name:
            raise SnapshotExistsError(f"snapshot {key!r} already exists")

    # ------------------------------------------------------------------------------------ changing

    def reserve_id(self) -> int:
        """An id that no record has. Never given twice in one process."""
        with self._changing:
            self._last_id += 1
            return self._last_id

    def skip_ids(self, last: int) -> None:
        """Give only ids greater than ``last``: directories without a record may have the others."""
        with self._changing:
            self._last_id = max(self._last_id, last)

    def create(self, snapshot_id: int, kind: Kind, key: str, parent: str, labels: dict[str, str]) -> Snapshot:
        """A new active or view snapshot. Raise as ``check_new``."""
        assert kind is not Kind.COMMITTED, "committed snapshots come from commit and place"
        with self._changing:
            self.check_new(key, parent)
            now = self._clock()
            record = Snapshot(
                id=snapshot_id, name=key, parent=parent, kind=kind, labels=labels, created_ns=now, updated_ns=now
            )
            self._apply(Change(put=(record,)), added=(record,))
            return record

    def place(self, chains: Sequence[Digest], labels: dict[str, str], *, ref_label: str) -> Snapshot:
        """Placeholders for a chain and, where they are missing, for the chains below it, all in one transaction.

        ``chains``: every prefix of the chain, shortest first. What is there already stays as it is. The last
        one gets ``labels``, those below it only ``ref_label``, without which containerd would not find them.
        Raise ``SnapshotExistsError`` when a name is taken by something else.
        """
        with self._changing:
            added: list[Snapshot] = []
            parent = ""
            for chain in chains:
                name = str(chain)
                record = self._by_name.get(name)
                if record is None:
                    self._last_id += 1
                    now = self._clock()
                    record = Snapshot(
                        id=self._last_id,
                        name=name,
                        parent=parent,
                        kind=Kind.COMMITTED,
                        labels={**(labels if chain == chains[-1] else {}), ref_label: name},
                        created_ns=now,
                        updated_ns=now,
                        usage=Usage(),
                        lazy_chain=name,
                    )
                    added.append(record)
                elif record.chain != chain or record.parent != parent:
                    raise SnapshotExistsError(f"snapshot {name!r} exists with another parent")
                parent = name
            if added:
                again = tuple(chain for chain in chains if chain in self._released)
                self._apply(Change(put=tuple(added), settle=again), added=added)
            return self._by_name[parent]

    def commit(self, name: str, key: str, parent: str, labels: dict[str, str]) -> Snapshot:
        """Turn the active ``key`` into the committed ``name``. ``labels`` replace those of ``key``."""
        with self._changing:
            if name in self._by_name:
                raise SnapshotExistsError(f"committed snapshot {name!r} already exists")
            active = self.get(key)
            if active.kind is not Kind.ACTIVE:
                raise SnapshotPreconditionError(f"snapshot {key!r} is not active")
            if parent and parent != active.parent:
                # Only a snapshotter that offers "rebase" may be asked to; we never offer it (containerd#13264).
                raise SnapshotPreconditionError(f"snapshot {key!r} has the parent {active.parent!r}, not {parent!r}")
            now = self._clock()
            record = msgspec.structs.replace(
                active, name=name, kind=Kind.COMMITTED, labels=labels, created_ns=now, updated_ns=now, usage=None
            )
            self._journal.apply(Change(put=(record,)))
            self._by_name[name] = record
            del self._by_name[key]
            return record

    def remove(self, key: str) -> Snapshot:
        """Forget a snapshot. Raise ``SnapshotNotFoundError``, ``SnapshotPreconditionError`` (it has children)."""
        with self._changing:
            record = self.get(key)
            if self._children[key]:
                raise SnapshotPreconditionError(f"snapshot {key!r} has children")
            chain = record.chain
            self._journal.apply(Change(delete=(record.id,), release=(chain,) if chain else ()))
            del self._by_name[key]
            self._ids.discard(record.id)
            self._count(record.parent, -1)
            if chain:
                self._released.add(chain)
            return record

    def relabel(self, name: str, labels: Mapping[str, str], fields: Iterable[str]) -> Snapshot:
        """Change labels: those that ``fields`` (``labels.<key>``) name, or, with ``labels`` or nothing, all.

        Raise ``SnapshotInvalidError`` for any other field.
        """
        with self._changing:
            record = self.get(name)
            fields = list(fields) or ["labels"]
            updated = dict(record.labels)
            for field in fields:
                if field == "labels":
                    updated = dict(labels)
                elif field.startswith("labels."):
                    key = field.removeprefix("labels.")
                    updated[key] = labels.get(key, "")
                else:
                    raise SnapshotInvalidError(f"cannot update the field {field!r} of snapshot {name!r}")
            kept = {key: value for key, value in updated.items() if value}
            return self._replace(msgspec.structs.replace(record, labels=kept, updated_ns=self._clock()))

    def measured(self, record: Snapshot, usage: Usage) -> None:
        """Keep what a committed snapshot takes, unless it has gone or changed meanwhile."""
        with self._changing:
            if self._by_name.get(record.name) == record:
                self._replace(msgspec.structs.replace(record, usage=usage))

    def settle(self, chain: Digest) -> None:
        """The released chain is unmounted, or stands for something again."""
        with self._changing:
            if chain in self._released:
                self._apply(Change(settle=(chain,)))

    # ------------------------------------------------------------------------------------- inside

    def _apply(self, change: Change, added: Sequence[Snapshot] = ()) -> None:
        self._journal.apply(change)
        for record in added:
            self._by_name[record.name] = record
            self._ids.add(record.id)
            self._count(record.parent, 1)
        self._released.difference_update(change.settle)

    def _replace(self, record: Snapshot) -> Snapshot:
        self._journal.apply(Change(put=(record,)))
        self._by_name[record.name] = record
        return record

    def _count(self, parent: str, difference: int) -> None:
        if parent:
            self._children[parent] += difference
            if not self._children[parent]:
                del self._children[parent]

    def _records(self) -> list[Snapshot]:
        return list(self._by_name.values())
