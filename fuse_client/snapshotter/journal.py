"""The records of the snapshots on disk: two tables of the node's database (``fastpull.cache.tables``).

``snapshots``        key: the id as 20 decimal digits; value: ``records.Snapshot``
``released_chains``  key: ``sha256:…``; value: empty. Chains to be unmounted: their placeholder is gone
"""

from __future__ import annotations

import logging

from fastpull.cache.digest import Digest
from fastpull.cache.errors import RecordDamagedError
from fastpull.cache.tables import Database
from fastpull.fuse_client.snapshotter.records import Snapshot
from fastpull.fuse_client.snapshotter.state import Change, Loaded

log = logging.getLogger(__name__)

SNAPSHOTS = "snapshots"
RELEASED_CHAINS = "released_chains"
TABLES = (SNAPSHOTS, RELEASED_CHAINS)
"""To be among the tables with which the database is opened."""


class LmdbJournal:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._snapshots = database.table(SNAPSHOTS, Snapshot)
        self._released = database.table(RELEASED_CHAINS, bytes)

    def load(self) -> Loaded:
        damaged: list[RecordDamagedError] = []
        records = [record for _, record in self._snapshots.items(on_damage=damaged.append)]
        for damage in damaged:
            log.error("a snapshot is lost, its files are kept: %s", damage)
        return Loaded(
            snapshots=records,
            released={Digest.parse(key) for key in self._released.keys()},  # noqa: SIM118 - a Table is no dict
            lost_ids={int(damage.key) for damage in damaged},
        )

    def apply(self, change: Change) -> None:
        with self._database.write():
            for record in change.put:
                self._snapshots.put(_key(record.id), record)
            for snapshot_id in change.delete:
                self._snapshots.delete(_key(snapshot_id))
            for chain in change.release:
                self._released.put(str(chain), b"")
            for chain in change.settle:
                self._released.delete(str(chain))


def _key(snapshot_id: int) -> str:
    return f"{snapshot_id:020d}"
