"""Snapshots on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastpull.cache.digest import Digest
from fastpull.cache.tables import Database
from fastpull.fuse_client.snapshotter.journal import SNAPSHOTS, TABLES, LmdbJournal
from fastpull.fuse_client.snapshotter.records import Kind, Snapshot, Usage
from fastpull.fuse_client.snapshotter.state import Change, SnapshotState


def snapshot(number: int, name: str) -> Snapshot:
    return Snapshot(
        id=number, name=name, kind=Kind.ACTIVE, created_ns=1, updated_ns=2, labels={"a": "b"}, usage=Usage(3, 4)
    )


def test_a_change_is_there_when_the_database_is_opened_again(tmp_path: Path) -> None:
    one, two, chain = snapshot(1, "one"), snapshot(2, "x" * 4000), Digest.of(b"c")
    database = Database.open(tmp_path, tables=TABLES, map_bytes=1 << 20)
    journal = LmdbJournal(database)
    journal.apply(Change(put=(one, two), release=(chain,)))
    journal.apply(Change(delete=(1,)))
    database.close()

    database = Database.open(tmp_path, tables=TABLES, map_bytes=1 << 20)
    loaded = LmdbJournal(database).load()
    database.close()

    assert loaded.snapshots == [two]
    assert loaded.released == {chain}


@pytest.mark.fault(
    "snapshotter: a record can not be understood",
    done="its value in the database replaced",
    promised="that snapshot is forgotten, the log says so, its files stay",
)
def test_a_damaged_record_costs_its_snapshot_not_its_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    database = Database.open(tmp_path, tables=TABLES, map_bytes=1 << 20)
    LmdbJournal(database).apply(Change(put=(snapshot(1, "kept"), snapshot(2, "lost"))))
    database.table(SNAPSHOTS, dict[str, int]).put(f"{2:020d}", {"no": 1})

    state = SnapshotState(LmdbJournal(database))

    assert [record.name for record in state.all()] == ["kept"]
    assert state.has_id(2)  # its directory is no garbage
    assert state.reserve_id() == 3
    assert "files are kept" in caplog.text
    database.close()
