"""A chunk store on a disk that is full, or fails."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance.audit import audit
from conformance.stores import content, raw

from fastpull.cache.codec import decode
from fastpull.cache.digest import ChunkId
from fastpull.cache.errors import ChunkCorruptError, StoreFullError
from fastpull.cache.lmdb_store import LmdbChunkStore
from fastpull.cache.tables import Database

MiB = 1 << 20
pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")]


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


@pytest.fixture(params=["tmpfs", "ext4"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    if request.param == "tmpfs":
        run("mount", "-t", "tmpfs", "-o", "size=24m", "none", str(mount))
    else:
        image = tmp_path / "image"
        with image.open("wb") as file:
            file.truncate(24 * MiB)
        run("mkfs.ext4", "-q", "-m", "0", str(image))
        run("mount", "-o", "loop", str(image), str(mount))
    try:
        yield mount
    finally:
        run("umount", str(mount))


def fill(file: Path) -> None:
    """Take every block that is left."""
    with file.open("wb", buffering=0) as taken:
        for piece in (MiB, 4096):
            try:
                while taken.write(bytes(piece)):
                    pass
            except OSError as exc:
                assert exc.errno == errno.ENOSPC


def batch(number: int) -> list[tuple[ChunkId, object]]:
    return [raw(number * 100 + part, 30_000) for part in range(20)]


@pytest.mark.fault(
    "chunk store: quota larger than the disk",
    done="50 MB into 24 MiB of tmpfs and ext4",
    promised="the oldest go, the newest are there",
)
def test_a_store_larger_than_its_disk_evicts_and_goes_on(disk: Path) -> None:
    """A quota that the disk does not have is no reason to stop: the oldest chunks go, the newest are there."""
    store = LmdbChunkStore.open(disk / "store", quota_bytes=1 << 30)
    for number in range(100):
        store.put_many(batch(number))
        assert all(store.has([name for name, _ in batch(number)]))

    assert store.stats().chunks < 100 * 20
    name = batch(99)[0][0]
    assert decode(store.get(name), name) == content(9900, 30_000)
    store.close()
    assert audit(disk / "store") == []


@pytest.mark.fault(
    "chunk store: disk filled by others",
    done="every block taken, then freed",
    promised="all that is there can be read; writing goes on when there is room",
)
def test_a_disk_that_others_filled_is_a_full_store_until_there_is_room(disk: Path) -> None:
    """What is there can be read, nothing is half there, and as soon as there is room the store takes chunks again."""
    store = LmdbChunkStore.open(disk / "store", quota_bytes=1 << 30)
    store.put_many(batch(0))
    fill(disk / "ballast")
    for number in range(1, 30):  # first what can be evicted makes room, and the ballast takes it
        try:
            store.put_many(batch(number))
        except StoreFullError:
            break
        fill(disk / f"ballast{number}")
    for name in store.ids():
        decode(store.get(name), name)

    for ballast in disk.glob("ballast*"):
        ballast.unlink()
    for number in range(50, 55):
        store.put_many(batch(number))
        assert all(store.has([name for name, _ in batch(number)]))
    store.close()
    assert audit(disk / "store") == []


@pytest.mark.fault(
    "tables: disk full",
    done="every block taken, then freed",
    promised="a write that does not fit did not happen; writing goes on when there is room",
)
def test_tables_on_a_full_disk_refuse_and_recover(disk: Path) -> None:
    """A write that does not fit did not happen; reading goes on; with room, writing too."""
    database = Database.open(disk / "db", tables=["blobs"])
    blobs = database.table("blobs", bytes)
    blobs.put("a", b"first")
    fill(disk / "ballast")
    with pytest.raises(StoreFullError):
        blobs.put("b", bytes(3 * MiB))
    assert blobs.get("a") == b"first"
    assert blobs.get("b") is None

    (disk / "ballast").unlink()
    blobs.put("b", bytes(3 * MiB))
    assert blobs.get("b") == bytes(3 * MiB)
    database.close()


@pytest.mark.fault(
    "chunk store: EIO",
    done="reads of the disk fail",
    promised="an error of that chunk alone",
)
def test_a_disk_that_can_not_be_read_is_damaged_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that the disk refuses is an error of that chunk, and reading ahead ignores it."""
    store = LmdbChunkStore.open(tmp_path, quota_bytes=64 * MiB)
    store.put_many(batch(0))
    names = [name for name, _ in batch(0)]

    def refuse(*_arguments: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(os, "pread", refuse)
        broken.setattr(os, "preadv", refuse)
        with pytest.raises(ChunkCorruptError, match="Input/output error"):
            store.get(names[0])
    assert store.get(names[0]) == batch(0)[0][1]
    store.close()
