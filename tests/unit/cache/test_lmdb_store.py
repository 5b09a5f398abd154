"""What the store on disk promises beyond the contract of all stores: damage, versions, power, space."""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conformance.audit import audit, unaccounted_blocks
from conformance.stores import Clock, content, packed, raw

from fastpull.cache import lmdb_store, power_loss, records
from fastpull.cache.chunk_index import ChunkIndex
from fastpull.cache.codec import decode
from fastpull.cache.digest import ChunkId
from fastpull.cache.errors import CacheError, ChunkCorruptError, ChunkMissingError, StoreFullError, StoreVersionError
from fastpull.cache.lmdb_store import LmdbChunkStore
from fastpull.cache.segments import Segments

MiB = 1 << 20
NAME, STORED = raw(1)


def nothing(_chunk: ChunkId) -> bool:
    return False


def open_store(path: Path, quota_bytes: int = 64 * MiB, *, durable: bool = True) -> LmdbChunkStore:
    return LmdbChunkStore.open(path, quota_bytes=quota_bytes, durable=durable)


def change_index(path: Path, table: str, key: bytes, change: Callable[[bytes], bytes]) -> None:
    """Write into the index of a closed store, as rot would."""
    index = ChunkIndex.open(path / "index", map_bytes=64 * MiB, marker=None)
    handle = getattr(index, table)
    with index.environment.begin(write=True) as transaction:
        transaction.put(key, change(transaction.get(key, db=handle)), db=handle)
    index.environment.close()


@pytest.mark.fault(
    "rot: a chunk's bytes in a segment",
    done="a byte flipped",
    promised="found, dropped, put again",
)
def test_rotten_bytes_are_found_dropped_and_put_again(tmp_path: Path) -> None:
    """The store gives what it has, the codec refuses it, and after a drop the chunk can be stored anew."""
    store = open_store(tmp_path)
    store.put_many([packed(1), packed(2)])
    store.close()
    with (tmp_path / "1.chunks").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff\x00\xff")

    store = open_store(tmp_path)
    name = packed(1)[0]
    with pytest.raises(ChunkCorruptError):
        decode(store.get(name), name)
    assert decode(store.get(packed(2)[0]), packed(2)[0]) == content(2)
    store.drop([name])
    store.put_many([packed(1)])
    assert decode(store.get(name), name) == content(1)
    store.close()


def test_rotten_accounts_start_an_empty_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Without them no quota can be kept."""
    store = open_store(tmp_path)
    store.put_many([raw(1)])
    store.close()
    change_index(tmp_path, "meta", b"accounts", lambda data: data[:5])

    with caplog.at_level(logging.WARNING):
        store = open_store(tmp_path)
    assert "empty store" in caplog.text
    assert store.stats().chunks == 0
    store.put_many([raw(1)])
    assert store.get(NAME) == STORED
    store.close()


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda entry: entry[:1] + b"\x07" + entry[2:], id="unknown-encoding"),
        pytest.param(lambda entry: entry[:12] + b"\xff\xff\xff\x00" + entry[16:], id="no-such-segment"),
        pytest.param(lambda entry: entry[:16] + b"\xff" * 7 + b"\x0f" + entry[24:], id="offset-out-of-the-file"),
        pytest.param(lambda entry: entry[:16] + b"\xff" * 8 + entry[24:], id="offset-out-of-all-bounds"),
        pytest.param(lambda entry: entry[:4] + b"\xff" * 4 + entry[8:], id="too-long"),
        pytest.param(lambda entry: entry[:20], id="cut"),
        pytest.param(lambda entry: b"", id="empty"),
        pytest.param(lambda entry: b"\0" * 32, id="zeros"),
    ],
)
def test_a_rotten_index_entry_is_one_damaged_chunk(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    """By every way to read it; the others are fine, and it can be dropped and put again."""
    store = open_store(tmp_path)
    store.put_many([raw(1), raw(2)])
    store.close()
    change_index(tmp_path, "index", NAME, change)

    store = open_store(tmp_path)
    with pytest.raises(ChunkCorruptError):
        store.get(NAME)
    with store.view() as view:
        with pytest.raises(ChunkCorruptError):
            view.get(NAME)
        assert view.get(raw(2)[0]) is not None
    store.drop([NAME])
    assert store.has([NAME]) == [False]
    store.put_many([raw(1)])
    assert store.get(NAME) == STORED
    store.close()


def test_an_entry_of_a_newer_version_is_missing_not_misread(tmp_path: Path) -> None:
    """As for a reader that runs beside a newer writer."""
    store = open_store(tmp_path)
    store.put_many([raw(1)])
    store.close()
    change_index(tmp_path, "index", NAME, lambda entry: b"\x02" + entry[1:] + b"more")

    store = open_store(tmp_path)
    with pytest.raises(ChunkMissingError):
        store.get(NAME)
    with store.view() as view:
        assert view.get(NAME) is None
    store.close()


@pytest.mark.fault(
    "rot: a segment file lost or cut",
    done="removed, truncated",
    promised="damaged chunks, which are fetched again",
)
def test_a_lost_or_cut_segment_is_damaged_chunks(tmp_path: Path) -> None:
    """Not a crash of the process that maps it."""
    store = open_store(tmp_path)
    store.put_many([raw(1), raw(2)])
    store.close()
    os.truncate(tmp_path / "1.chunks", 6000)
    store = open_store(tmp_path)
    assert store.get(NAME) == STORED
    with pytest.raises(ChunkCorruptError), store.view() as view:
        view.get(raw(2)[0])
    with pytest.raises(ChunkCorruptError):
        store.get(raw(2)[0])
    store.put_many([raw(3)])
    assert store.get(raw(3)[0]) == raw(3)[1]
    store.close()

    for segment in tmp_path.glob("*.chunks"):
        segment.unlink()
    store = open_store(tmp_path)
    with pytest.raises(ChunkCorruptError), store.view() as view:
        view.get(NAME)
    store.drop([name for name, _ in (raw(1), raw(2), raw(3))])
    store.put_many([raw(1)])
    assert store.get(NAME) == STORED
    store.close()


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    """With a remedy, and without a change."""
    open_store(tmp_path).close()
    change_index(tmp_path, "meta", b"format", lambda _data: (records.FORMAT + 1).to_bytes(4, "little"))

    for _ in range(2):
        with pytest.raises(StoreVersionError, match="remove the directory"):
            open_store(tmp_path)


def test_an_index_that_is_no_lmdb_file_starts_an_empty_store(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is a cache: what can not be read is fetched again. One log line says so."""
    store = open_store(tmp_path)
    store.put_many([raw(1)])
    store.close()
    (tmp_path / "index" / "data.mdb").write_bytes(os.urandom(20_000))

    with caplog.at_level(logging.WARNING):
        store = open_store(tmp_path)

    assert "empty store" in caplog.text
    assert list(store.ids()) == []
    store.put_many([raw(1)])
    assert store.get(NAME) == STORED
    store.close()


def test_a_directory_that_can_not_be_used_is_named(tmp_path: Path) -> None:
    """As ``CacheError``."""
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match="file"):
        open_store(tmp_path / "file")


def power_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next opening is in another boot."""
    boot = os.urandom(8).hex().encode()
    for module in (power_loss, lmdb_store):
        monkeypatch.setattr(module, "boot_id", lambda: boot)


@pytest.mark.fault(
    "power: lost",
    done="the pages that were not flushed become zeros",
    promised="chunks that were not flushed are forgotten, none is wrong",
)
def test_a_power_loss_takes_what_was_not_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly that: the bytes of later chunks may not have reached the disk, those of earlier ones have."""
    store = open_store(tmp_path)
    store.put_many([raw(number) for number in range(5)])
    store.sync()
    store.put_many([raw(number) for number in range(5, 9)])
    store.close()
    assert audit(tmp_path) == []
    power_goes(monkeypatch)

    store = open_store(tmp_path)
    assert set(store.ids()) == {raw(number)[0] for number in range(5)}
    store.put_many([raw(number) for number in range(7, 12)])
    store.sync()
    store.close()
    assert audit(tmp_path) == []
    power_goes(monkeypatch)

    store = open_store(tmp_path)
    assert len(list(store.ids())) == 10
    store.close()


def test_a_restart_of_the_process_alone_loses_nothing(tmp_path: Path) -> None:
    """The kernel has the bytes."""
    for durable in (True, False):
        path = tmp_path / str(durable)
        store = open_store(path, durable=durable)
        store.put_many([raw(1)])
        store.close()
        store = open_store(path, durable=durable)
        assert store.get(NAME) == STORED
        store.close()


def test_without_flushes_a_power_loss_empties_the_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless everything was synced; never is an index used that may be half written."""
    store = open_store(tmp_path, durable=False)
    store.put_many([raw(1)])
    store.sync()
    store.close()
    power_goes(monkeypatch)

    store = open_store(tmp_path, durable=False)
    assert store.get(NAME) == STORED
    store.put_many([raw(2)])
    store.close()
    power_goes(monkeypatch)

    with caplog.at_level(logging.WARNING):
        store = open_store(tmp_path, durable=False)
    assert "power" in caplog.text
    assert list(store.ids()) == []
    assert list(tmp_path.glob("*.chunks")) == []
    store.put_many([raw(1)])
    store.sync()
    store.close()
    power_goes(monkeypatch)
    store = open_store(tmp_path, durable=False)
    assert store.get(NAME) == STORED
    store.close()


def test_evicted_space_returns_to_the_file_system(tmp_path: Path) -> None:
    """Also between chunks that stay, down to the block."""
    store = open_store(tmp_path)
    chunks = [raw(number, 40_000) for number in range(200)]
    store.put_many(chunks)
    before = store.stats().file_bytes
    store.drop([name for number, (name, _) in enumerate(chunks) if number % 3])

    assert store.stats().file_bytes < before - 100 * 40_000
    store.close()
    assert audit(tmp_path) == []
    assert unaccounted_blocks(tmp_path) <= 2  # the end of the segment, and what the file system adds


def test_the_files_stay_near_the_live_bytes_under_churn(tmp_path: Path) -> None:
    """Chunks of mixed sizes, some used again, through several times the quota."""
    quota = 12 * MiB
    store = open_store(tmp_path, quota, durable=False)
    clock = Clock()
    store.clock = clock
    for step in range(20, 80):
        clock.advance(100)
        store.put_many([raw(step * 50 + part, 400 + (part * 7919) % 60_000) for part in range(30)])
        store.touch([raw((step - back) * 50, 400)[0] for back in range(5, 20, 5)])
    store.flush()
    store.flush()

    stats = store.stats()
    index = os.stat(tmp_path / "index" / "data.mdb").st_blocks * 512  # with its reserve, which is the same for any size
    assert stats.live_bytes <= quota
    assert stats.file_bytes - index <= stats.live_bytes * 1.1
    store.close()
    assert audit(tmp_path) == []


def test_space_returns_only_when_nobody_looks_any_more(tmp_path: Path) -> None:
    """A view keeps the bytes of what was evicted; then the next flush gives them back."""
    store = open_store(tmp_path)
    store.put_many([raw(number, 50_000) for number in range(100)])
    with store.view() as view:
        store.evict(0, in_use=nothing)
        assert unaccounted(store) > 1000
        found = view.get(raw(99, 50_000)[0])
        assert found is not None
        assert bytes(found.data) == content(99, 50_000)
        del found
    store.flush()
    assert unaccounted(store) < 5
    store.close()


def unaccounted(store: LmdbChunkStore) -> int:
    return sum(file.stat().st_blocks for file in store.path.glob("*.chunks")) * 512 // 4096


def small_segments(path: Path, quota_bytes: int, segment_bytes: int) -> LmdbChunkStore:
    path.mkdir(exist_ok=True)
    index = ChunkIndex.open(path / "index", map_bytes=64 * MiB, marker=None)
    return LmdbChunkStore(path, index, Segments(path, segment_bytes), quota_bytes)


def test_full_segments_are_followed_by_others_and_removed_when_empty(tmp_path: Path) -> None:
    """A batch may span several; no file is left behind."""
    store = small_segments(tmp_path, 4 * MiB, 100_000)
    store.put_many([raw(number, 30_000) for number in range(30)])
    assert len(list(tmp_path.glob("*.chunks"))) == 10
    for number in range(30):
        assert store.get(raw(number, 30_000)[0]) == raw(number, 30_000)[1]

    store.evict(0, in_use=nothing)

    assert len(list(tmp_path.glob("*.chunks"))) == 1
    store.put_many([raw(1)])
    assert store.get(NAME) == STORED
    store.close()
    assert audit(tmp_path) == []


def test_one_busy_chunk_does_not_keep_a_segment_for_ever(tmp_path: Path) -> None:
    """Old segments are emptied by moving what is left in them, so their number stays bounded."""
    store = small_segments(tmp_path, 1 * MiB, 200_000)
    clock = Clock()
    store.clock = clock
    busy = []
    for step in range(60):
        clock.advance(100)
        busy.append(raw(step * 10, 600)[0])
        store.put_many([raw(step * 10, 600), *(raw(step * 10 + part, 40_000) for part in range(1, 5))])
        store.touch(busy)
        store.flush()

    assert len(list(tmp_path.glob("*.chunks"))) <= 2 * MiB // 200_000 + 8 + 3
    assert all(store.has(busy))
    assert [store.get(name).data for name in busy[:20]] == [content(step * 10, 600) for step in range(20)]
    store.close()
    assert audit(tmp_path) == []


def test_a_segment_is_continued_after_a_restart(tmp_path: Path) -> None:
    """Else a process that is restarted often would leave many that are nearly empty."""
    for number in range(10):
        store = open_store(tmp_path)
        store.put_many([raw(number)])
        store.close()

    assert len(list(tmp_path.glob("*.chunks"))) == 1
    assert audit(tmp_path) == []


def test_files_of_a_process_that_was_killed_while_making_them_are_removed(tmp_path: Path) -> None:
    """And their number can be used again."""
    store = open_store(tmp_path)
    store.put_many([raw(1)])
    store.close()
    (tmp_path / "2.chunks").write_bytes(bytes(1000))
    (tmp_path / "77.chunks").write_bytes(bytes(1000))

    store = open_store(tmp_path)
    assert [file.name for file in tmp_path.glob("*.chunks")] == ["1.chunks"]
    assert store.get(NAME) == STORED
    store.close()


@pytest.mark.fault(
    "chunk store: the index's LMDB map is full",
    done="a map of 1 MiB, filled with small chunks",
    promised="the store says that it is full, and its users go on uncached; all that is there can be read; a larger "
    "map helps",
)
def test_a_full_map_is_a_full_store(tmp_path: Path) -> None:
    """As when a reader that hangs keeps every old page. Reading goes on, nothing breaks, a larger map helps."""

    def opened(map_bytes: int) -> LmdbChunkStore:
        index = ChunkIndex.open(tmp_path / "index", map_bytes=map_bytes, marker=None)
        return LmdbChunkStore(tmp_path, index, Segments(tmp_path, 16 * MiB), 64 * MiB)

    store = opened(1 * MiB)
    batches = [[raw(step * 50 + part, 40) for part in range(50)] for step in range(300)]
    done = []
    with pytest.raises(StoreFullError):
        for batch in batches:
            store.put_many(batch)
            done.append(batch)
    assert done
    assert store.get(done[-1][0][0]) == done[-1][0][1]
    store.close()
    assert audit(tmp_path) == []

    store = opened(64 * MiB)
    store.put_many(batches[-1])
    assert all(store.has([name for name, _ in batches[-1]]))
    store.close()
    assert audit(tmp_path) == []


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk refuses in the middle of a batch: no chunk of it is there, the next batch is right."""
    store = small_segments(tmp_path, 4 * MiB, 100_000)
    store.put_many([raw(1)])
    write, calls = os.pwritev, []

    def refuse(descriptor: int, buffers: list[bytes], offset: int) -> int:
        calls.append(offset)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        return write(descriptor, buffers, offset)

    monkeypatch.setattr(os, "pwritev", refuse)
    with pytest.raises(CacheError, match="Input/output"):
        store.put_many([raw(number, 30_000) for number in range(10, 20)])
    assert list(store.ids()) == [NAME]

    store.put_many([raw(number, 30_000) for number in range(20, 30)])
    assert len(calls) > 4
    store.close()
    assert audit(tmp_path) == []


def test_a_short_write_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel may write less than asked; the rest follows."""
    store = open_store(tmp_path)
    write = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, buffers, offset: write(fd, [b"".join(buffers)[:777]], offset))
    store.put_many([raw(number) for number in range(5)])
    store.close()

    assert audit(tmp_path) == []


def test_the_mapped_index_can_be_released(tmp_path: Path) -> None:
    """The process shrinks by the pages of the index that it has looked at."""
    store = open_store(tmp_path)
    for first in range(0, 20_000, 2000):
        store.put_many([raw(number, 10) for number in range(first, first + 2000)])
    assert all(store.has([raw(number, 10)[0] for number in range(20_000)]))
    before = resident_file_bytes()

    store.release_resident()

    assert resident_file_bytes() < before - 1 * MiB
    assert store.get(raw(7, 10)[0]) == raw(7, 10)[1]
    store.close()


def test_what_is_not_in_memory_is_read_ahead(tmp_path: Path) -> None:
    """The disk is asked for what the page cache has not, once, and for nothing else."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], check=True, capture_output=True, text=True).stdout
    if kind.strip() == "tmpfs":
        pytest.skip("the temporary directory is in memory, not on a disk")
    store = open_store(tmp_path)
    chunks = [raw(number, 250_000) for number in range(20)]
    names = [name for name, _ in chunks]
    store.put_many(chunks)
    store.sync()
    asked = 0
    for attempt in range(40):  # the kernel forgets only what nobody else holds at the moment
        time.sleep(attempt / 100)
        for segment in tmp_path.glob("*.chunks"):
            with segment.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        asked = store.read_ahead(names[:10])
        if asked >= 9 * 250_000:
            break
    assert 9 * 250_000 <= asked <= 11 * 250_000
    for _ in range(20):  # somebody else may drop the page cache meanwhile
        with store.view() as view:
            for name in names:
                found = view.get(name)
                assert found is not None
                sum(found.data[::4096])
                del found
        if not store.read_ahead(names):
            break
    else:
        pytest.fail("what was read a moment ago is read ahead")
    store.close()


def test_reading_keeps_the_process_small(tmp_path: Path) -> None:
    """However much is read, one view after the other: what stays resident is a small part of it."""
    store = open_store(tmp_path, quota_bytes=256 * MiB)
    chunks = [raw(number, 250_000) for number in range(600)]
    store.put_many(chunks)
    before = resident_file_bytes()
    most = 0
    for name, _ in chunks:
        with store.view() as view:
            found = view.get(name)
            assert found is not None
            sum(found.data[::4096])
            del found
        most = max(most, resident_file_bytes() - before)
    assert 2 * most < 600 * 250_000
    store.close()


def resident_file_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile"))


def test_one_process_opens_a_store_once(tmp_path: Path) -> None:
    """A second opening would share and then break the locks of the first; it is refused."""
    store = open_store(tmp_path)
    with pytest.raises(CacheError):
        open_store(tmp_path)
    store.put_many([raw(1)])
    assert store.get(NAME) == STORED
    store.close()
