"""A reader in another process than the store: what comes shows, what goes is gone, nothing is mistaken."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conformance.stores import raw

from fastpull.cache.errors import CacheError
from fastpull.cache.lmdb_reader import LmdbChunkReader
from fastpull.cache.lmdb_store import LmdbChunkStore

MiB = 1 << 20
TESTS = str(Path(__file__).parents[2])

# Commands on standard input, one answer each: "has N", "get N", "current", "tidy".
PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conformance.stores import content, raw
from fastpull.cache.errors import CacheError
from fastpull.cache.lmdb_reader import LmdbChunkReader
reader = LmdbChunkReader.open(Path(sys.argv[1]))
for line in sys.stdin:
    verb, *rest = line.split()
    try:
        if verb == "current":
            answer = reader.is_current
        elif verb == "tidy":
            answer = reader.tidy()
        elif verb == "has":
            answer = reader.has([raw(int(rest[0]), 9000)[0]])[0]
        else:
            with reader.view() as view:
                found = view.get(raw(int(rest[0]), 9000)[0])
                answer = None if found is None else bytes(found.data) == content(int(rest[0]), 9000)
                found = None
    except CacheError as exc:
        answer = type(exc).__name__
    print(answer, flush=True)
reader.close()
"""


class Reader:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, text: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(text + "\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()


@contextmanager
def reader_of(path: Path) -> Iterator[Reader]:
    command = [sys.executable, "-P", "-c", PROGRAM, str(path), TESTS]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield Reader(process)
        process.communicate(timeout=120)
        assert process.returncode == 0
    finally:
        process.kill()
        process.communicate()


@contextmanager
def store_at(path: Path) -> Iterator[LmdbChunkStore]:
    store = LmdbChunkStore.open(path, quota_bytes=64 * MiB)
    try:
        yield store
    finally:
        store.close()


def test_what_is_put_and_dropped_shows(tmp_path: Path) -> None:
    """At the next look, also out of segments that did not exist when the reader began."""
    with store_at(tmp_path) as store, reader_of(tmp_path) as reader:
        assert reader.ask("get 1") == "None"
        store.put_many([raw(1, 9000)])
        assert reader.ask("get 1") == "True"
        assert reader.ask("has 1") == "True"
        store.put_many([raw(number, 9000) for number in range(100, 2000)])  # 16 MiB: the next segment
        assert reader.ask("get 1999") == "True"
        store.drop([raw(1, 9000)[0]])
        assert reader.ask("get 1") == "None"
        assert reader.ask("has 1") == "False"
        assert reader.ask("tidy") == "None"
        assert reader.ask("get 1999") == "True"


def test_a_store_that_begins_anew_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    """Its segments have the old numbers and other bytes: the old index gives nothing of them."""
    with store_at(tmp_path) as store:
        store.put_many([raw(1, 9000), raw(2, 9000)])
    with reader_of(tmp_path) as reader:
        assert reader.ask("current") == "True"
        shutil.rmtree(tmp_path)
        with store_at(tmp_path) as store:
            store.put_many([raw(3, 9000), raw(4, 9000)])
            assert reader.ask("current") == "False"
            assert reader.ask("get 1") == "ChunkCorruptError"


@pytest.mark.parametrize("broken", ["absent", "empty", "newer"])
def test_what_is_no_store_is_refused(tmp_path: Path, broken: str) -> None:
    """Nothing is created there."""
    if broken == "empty":
        (tmp_path / "index").mkdir()
    elif broken == "newer":
        with store_at(tmp_path) as store, store._index.environment.begin(write=True) as transaction:
            transaction.put(b"format", b"\xff\xff\xff\xff", db=store._index.meta)
    before = sorted(tmp_path.rglob("*.mdb"))
    with pytest.raises(CacheError):
        LmdbChunkReader.open(tmp_path)
    assert sorted(tmp_path.rglob("data.mdb")) == [path for path in before if path.name == "data.mdb"]
