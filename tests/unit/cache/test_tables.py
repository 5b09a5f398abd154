"""Typed, durable tables."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastpull.cache.errors import CacheError, RecordDamagedError, StoreFullError, StoreVersionError
from fastpull.cache.tables import Database, Table


class Manifest(msgspec.Struct, frozen=True):
    media_type: str
    size: int
    body: bytes = b""


TABLES = ["manifests", "blobs", "tags"]
ONE = Manifest("application/json", 3, b"{ }")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.open(tmp_path / "db", tables=TABLES)
    yield opened
    opened.close()


@pytest.fixture
def manifests(database: Database) -> Table[Manifest]:
    return database.table("manifests", Manifest)


def test_values_come_back_also_after_a_restart(tmp_path: Path) -> None:
    """Structs as structs, bytes as bytes, up to many megabytes."""
    big = bytes(range(256)) * 40_000
    database = Database.open(tmp_path, tables=TABLES)
    database.table("manifests", Manifest).put("a", ONE)
    database.table("blobs", bytes).put("a", big)
    database.table("blobs", bytes).put("empty", b"")
    database.close()

    database = Database.open(tmp_path, tables=TABLES)
    assert database.table("manifests", Manifest).get("a") == ONE
    assert big == database.table("blobs", bytes).get("a")
    assert database.table("blobs", bytes).get("empty") == b""
    assert database.table("tags", str).get("a") is None
    database.close()


def test_a_put_replaces_and_a_delete_removes(manifests: Table[Manifest]) -> None:
    """Deleting says whether there was something."""
    manifests.put("a", ONE)
    manifests.put("a", Manifest("text/plain", 1))

    assert manifests.get("a") == Manifest("text/plain", 1)
    assert manifests.count() == 1
    assert manifests.delete("a") is True
    assert manifests.delete("a") is False
    assert manifests.get("a") is None


def test_items_and_keys_are_those_of_the_prefix_in_order(database: Database, manifests: Table[Manifest]) -> None:
    """Over several pages, and other prefixes stay out."""
    with database.write():
        for number in range(400):
            manifests.put(f"b/{number:04}", Manifest("x", number))
        manifests.put("a", ONE)
        manifests.put("b", ONE)
        manifests.put("c/1", ONE)

    assert [f"b/{number:04}" for number in range(400)] == list(manifests.keys("b/"))
    assert list(range(400)) == [value.size for _, value in manifests.items("b/")]
    assert len(list(manifests.keys())) == manifests.count() == 403
    assert list(manifests.items("d")) == []


def test_items_can_be_deleted_while_they_are_read(database: Database, manifests: Table[Manifest]) -> None:
    """No transaction is open between two items."""
    with database.write():
        for number in range(300):
            manifests.put(f"{number:04}", ONE)
    for number, (key, _) in enumerate(manifests.items()):
        assert key == f"{number:04}"
        if number % 10 == 0:
            manifests.delete(key)

    assert manifests.count() == 270


def test_a_write_happens_as_a_whole_or_not_at_all(database: Database, manifests: Table[Manifest]) -> None:
    """Over several tables; inside, it sees itself."""
    tags = database.table("tags", str)
    manifests.put("a", ONE)
    with pytest.raises(ZeroDivisionError), database.write():
        manifests.put("b", ONE)
        manifests.delete("a")
        tags.put("t", "b")
        assert manifests.get("b") == ONE
        assert list(tags.items()) == [("t", "b")]
        raise ZeroDivisionError
    assert (list(manifests.keys()), tags.count()) == (["a"], 0)

    with database.write():
        manifests.put("b", ONE)
        tags.put("t", "b")
    assert (manifests.count(), tags.get("t")) == (2, "b")


def test_a_read_is_of_one_moment(database: Database, manifests: Table[Manifest]) -> None:
    """What others write meanwhile does not show before it ends."""
    manifests.put("a", ONE)
    with database.read():
        assert manifests.count() == 1
        other = threading.Thread(target=manifests.put, args=("b", ONE))
        other.start()
        other.join()
        assert (manifests.count(), manifests.get("b")) == (1, None)
    assert manifests.count() == 2


def test_writes_do_not_nest(database: Database) -> None:
    """A second one inside would wait for itself for ever; it is refused, and the first goes on."""
    with database.write(), pytest.raises(RuntimeError), database.write():
        pass
    with database.write():
        pass


def test_a_write_inside_a_read_is_refused(database: Database, manifests: Table[Manifest]) -> None:
    """Its result would not show, so it is a mistake."""
    with database.read(), pytest.raises(RuntimeError):
        manifests.put("a", ONE)
    assert manifests.count() == 0


def damage(path: Path, table: bytes, key: bytes, change: object) -> None:
    """Change the bytes of a value behind the database's back."""
    environment = lmdb.open(str(path), max_dbs=10, map_size=64 << 20)
    handle = environment.open_db(table)
    with environment.begin(write=True) as transaction:
        data = bytearray(transaction.get(key, db=handle))
        transaction.put(key, bytes(change(data)), db=handle)  # type: ignore[operator]  # a function of bytearrays
    environment.close()


@pytest.mark.fault(
    "rot: a bit in a database value",
    done="one bit flipped, anywhere",
    promised="found by its checksum, never returned",
)
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_flipped_bit_is_found(tmp_path: Path, position: int, bit: int) -> None:
    """Wherever it is; the error names table and key, and the caller can drop the value."""

    def flip(data: bytearray) -> bytearray:
        data[position % len(data)] ^= 1 << bit
        return data

    path = tmp_path / "db"
    database = Database.open(path, tables=TABLES)
    database.table("manifests", Manifest).put("the/key", ONE)
    database.table("manifests", Manifest).put("z", ONE)
    database.close()
    damage(path, b"manifests", b"the/key", flip)

    database = Database.open(path, tables=TABLES)
    manifests = database.table("manifests", Manifest)
    with pytest.raises(RecordDamagedError, match=r"the/key.*manifests") as caught:
        manifests.get("the/key")
    assert (caught.value.table, caught.value.key) == ("manifests", "the/key")
    with pytest.raises(RecordDamagedError):
        list(manifests.items())
    seen: list[RecordDamagedError] = []
    assert list(manifests.items(on_damage=seen.append)) == [("z", ONE)]
    assert [error.key for error in seen] == ["the/key"]
    manifests.delete("the/key")
    assert manifests.get("the/key") is None
    database.close()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda data: b"", id="empty"),
        pytest.param(lambda data: data[:5], id="cut-in-the-header"),
        pytest.param(lambda data: data[:-1], id="cut"),
        pytest.param(lambda data: data + b"\0", id="longer"),
        pytest.param(lambda data: b"\x02" + data[1:], id="newer-version"),
    ],
)
def test_a_value_of_another_form_is_damage(tmp_path: Path, change: object) -> None:
    """Never another value, never another exception."""
    database = Database.open(tmp_path, tables=TABLES)
    database.table("manifests", Manifest).put("a", ONE)
    database.close()
    damage(tmp_path, b"manifests", b"a", change)

    database = Database.open(tmp_path, tables=TABLES)
    with pytest.raises(RecordDamagedError):
        database.table("manifests", Manifest).get("a")
    database.close()


def test_a_value_under_another_key_is_damage(tmp_path: Path) -> None:
    """The checksum covers the key, so a page that ended up elsewhere is found."""
    database = Database.open(tmp_path, tables=TABLES)
    blobs = database.table("blobs", bytes)
    blobs.put("a", b"of a")
    blobs.put("b", b"of b")
    database.close()
    values: list[bytes] = []
    damage(tmp_path, b"blobs", b"a", lambda data: values.append(bytes(data)) or data)
    damage(tmp_path, b"blobs", b"b", lambda _data: values[0])

    database = Database.open(tmp_path, tables=TABLES)
    with pytest.raises(RecordDamagedError):
        database.table("blobs", bytes).get("b")
    database.close()


def test_a_value_of_another_type_is_damage(database: Database) -> None:
    """As when a field changed its meaning without a new version of the database."""
    database.table("manifests", str).put("a", "text")
    with pytest.raises(RecordDamagedError):
        database.table("manifests", Manifest).get("a")


def test_another_version_is_refused(tmp_path: Path) -> None:
    """In both directions, and the files are not touched."""
    Database.open(tmp_path, tables=TABLES, version=2).close()
    with pytest.raises(StoreVersionError, match="a newer version"):
        Database.open(tmp_path, tables=TABLES, version=1)
    with pytest.raises(StoreVersionError, match="an older version"):
        Database.open(tmp_path, tables=TABLES, version=3)
    Database.open(tmp_path, tables=TABLES, version=2).close()


def test_tables_can_be_added_later(tmp_path: Path) -> None:
    """Without a new version; those that are not named any more keep their values."""
    database = Database.open(tmp_path, tables=["tags"])
    database.table("tags", str).put("a", "1")
    database.close()
    database = Database.open(tmp_path, tables=["blobs"])
    assert database.table("blobs", bytes).count() == 0
    database.close()
    database = Database.open(tmp_path, tables=["tags", "blobs"])
    assert database.table("tags", str).get("a") == "1"
    database.close()


@pytest.mark.parametrize("key", ["", "x" * 512, "\u00e9" * 256])
def test_keys_that_do_not_fit_are_refused(manifests: Table[Manifest], key: str) -> None:
    """With the limit in the message."""
    for call in (manifests.get, manifests.delete, lambda wrong: manifests.put(wrong, ONE)):
        with pytest.raises(CacheError, match="511"):
            call(key)


def test_a_full_database_says_so_and_stays_usable(tmp_path: Path) -> None:
    """What did not fit is not there, the rest can be read and deleted."""
    database = Database.open(tmp_path, tables=TABLES, map_bytes=1 << 20)
    blobs = database.table("blobs", bytes)
    blobs.put("a", bytes(300_000))
    with pytest.raises(StoreFullError):
        blobs.put("b", bytes(2_000_000))
    assert blobs.get("b") is None
    blobs.delete("a")
    blobs.put("c", b"small")
    assert blobs.get("c") == b"small"
    database.close()


def test_files_that_are_no_database_are_refused(tmp_path: Path) -> None:
    """As ``CacheError`` with the path; a directory that can not be made is named as well."""
    (tmp_path / "data.mdb").write_bytes(b"something else entirely" * 1000)
    with pytest.raises(CacheError, match=str(tmp_path)):
        Database.open(tmp_path, tables=TABLES)
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="file/below"):
        Database.open(tmp_path / "file" / "below", tables=TABLES)


COUNT_UP = """
import sys
from pathlib import Path
from fastpull.cache.tables import Database

database = Database.open(Path(sys.argv[1]), tables=["counters"])
counters = database.table("counters", int)
for _ in range(40):
    with database.write():
        counters.put("n", (counters.get("n") or 0) + 1)
"""


def test_processes_share_a_database(tmp_path: Path) -> None:
    """Each write sees all that were committed before it, whoever made them."""
    workers = [subprocess.Popen([sys.executable, "-P", "-c", COUNT_UP, str(tmp_path)]) for _ in range(3)]
    assert [worker.wait(120) for worker in workers] == [0, 0, 0]

    database = Database.open(tmp_path, tables=["counters"])
    assert database.table("counters", int).get("n") == 120
    database.close()
