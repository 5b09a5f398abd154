"""Layers are ingested by real worker processes, which may die, stall or be called off."""

import asyncio
import gzip
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from fakes.tars import END, header, member

from fastpull.cache.digest import Digest
from fastpull.cache.errors import StoreVersionError
from fastpull.cache.lmdb_store import LmdbChunkStore
from fastpull.cache.tasks import Tasks
from fastpull.config.proxy import CacheSettings, IngestSettings, ProxySettings
from fastpull.config.units import ByteSize, MiB
from fastpull.image.chain import build_chain
from fastpull.image.errors import (
    IndexFormatError,
    LayerDigestError,
    LimitExceededError,
    UnsafeEntryError,
    UnsupportedMediaTypeError,
)
from fastpull.image.layer_index import LayerIndex
from fastpull.proxy.ingest.errors import WorkerFailedError, WorkerStalledError, describe, rebuilt
from fastpull.proxy.ingest.pool import LayerJob, LayerPool, WorkerDiedError

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
TIMEOUT = 60
TAR = b"".join(member(b"file%d" % n, b"%d " % n * 5000) for n in range(60)) + END


@pytest.fixture
def settings() -> ProxySettings:
    return ProxySettings(
        ingest=IngestSettings(workers=2, max_entries=1000), cache=CacheSettings(chunk_bytes=ByteSize(64 * MiB))
    )


@pytest.fixture
async def pool(settings: ProxySettings, tmp_path: Path) -> AsyncIterator[LayerPool]:
    async with LayerPool(settings, tmp_path / "store") as pool:
        yield pool
    assert pool.pids == []


@pytest.fixture
async def tasks() -> AsyncIterator[Tasks]:
    tasks = Tasks()
    yield tasks
    await tasks.aclose()


def job(tmp_path: Path, tar: bytes = TAR, *, media_type: str = GZIP, diff_id: Digest | None = None) -> LayerJob:
    path = tmp_path / f"blob-{len(list(tmp_path.iterdir()))}"
    path.write_bytes(gzip.compress(tar, 1))
    return LayerJob(path, path.stat().st_size, media_type, diff_id or Digest.of(tar))


def everything(job: LayerJob) -> Callable[[int], Awaitable[int]]:
    async def available(_offset: int) -> int:
        return job.blob_bytes

    return available


def ignore(_consumed: int) -> None:
    pass


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.01)


class Stalled:
    """A download that stops in the middle."""

    def __init__(self, job: LayerJob) -> None:
        self.job = job
        self.is_reached = asyncio.Event()
        self.goes_on = asyncio.Event()
        self.is_worked_on = asyncio.Event()

    async def available(self, offset: int) -> int:
        if offset < self.job.blob_bytes // 2:
            return self.job.blob_bytes // 2
        self.is_reached.set()
        await self.goes_on.wait()
        return self.job.blob_bytes

    def progress(self, _consumed: int) -> None:
        self.is_worked_on.set()

    def spawn(self, pool: LayerPool, tasks: Tasks) -> asyncio.Task[bytes]:
        call = pool.ingest(self.job, available=self.available, progress=self.progress)
        return tasks.spawn(call, name="stalled")


async def test_a_growing_blob_becomes_a_durable_index(pool: LayerPool, tmp_path: Path) -> None:
    layer = job(tmp_path)
    asked: list[int] = []
    consumed: list[int] = []

    async def available(offset: int) -> int:
        asked.append(offset)
        return min(layer.blob_bytes, offset + 1000)

    data = await pool.ingest(layer, available=available, progress=consumed.append)
    index = LayerIndex.from_bytes(data)
    assert [entry.path for entry in index.entries] == [b"file%d" % n for n in range(60)]
    assert asked == list(range(0, layer.blob_bytes, 1000))
    assert consumed == sorted(consumed)
    store = LmdbChunkStore.open(tmp_path / "store", quota_bytes=64 * MiB)
    try:
        assert all(store.has([chunk for entry in index.entries for chunk, _ in entry.chunk_refs()]))
    finally:
        store.close()


async def test_chains_are_built_in_a_worker(pool: LayerPool, tmp_path: Path) -> None:
    layers = [job(tmp_path), job(tmp_path, member(b"upper", b"x") + END)]
    indexes = [await pool.ingest(layer, available=everything(layer), progress=ignore) for layer in layers]
    assert await pool.build_chain(indexes) == build_chain([LayerIndex.from_bytes(index) for index in indexes])
    with pytest.raises(IndexFormatError):
        await pool.build_chain([b"no index"])


async def test_layers_run_side_by_side(pool: LayerPool, tasks: Tasks, tmp_path: Path) -> None:
    """One that waits for its download keeps nobody from working."""
    stalled = Stalled(job(tmp_path))
    waiting = stalled.spawn(pool, tasks)
    await asyncio.wait_for(stalled.is_reached.wait(), TIMEOUT)
    layers = [job(tmp_path, member(b"n%d" % n, b"x") + END) for n in range(6)]
    indexes = await asyncio.gather(
        *(pool.ingest(layer, available=everything(layer), progress=ignore) for layer in layers)
    )
    assert len(set(indexes)) == 6
    assert len(pool.pids) == 2
    stalled.goes_on.set()
    assert LayerIndex.from_bytes(await waiting).tar_bytes == len(TAR)


async def test_work_goes_to_the_worker_that_has_less_left(pool: LayerPool, tasks: Tasks, tmp_path: Path) -> None:
    """However many layers that is: two large ones of an image do not share a process while another has small ones."""
    large = Stalled(job(tmp_path, member(b"large", os.urandom(1 << 20)) + END))
    small = [Stalled(job(tmp_path, member(b"small%d" % n, os.urandom(9000)) + END)) for n in range(2)]
    calls = []
    for stalled in (large, *small):
        calls.append(stalled.spawn(pool, tasks))
        await asyncio.wait_for(stalled.is_reached.wait(), TIMEOUT)
    _, second = pool.pids
    os.kill(second, signal.SIGKILL)
    for call in calls[1:]:
        with pytest.raises(WorkerDiedError):
            await asyncio.wait_for(call, TIMEOUT)
    large.goes_on.set()
    assert await asyncio.wait_for(calls[0], TIMEOUT)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        pytest.param({"diff_id": Digest("0" * 64)}, LayerDigestError, id="another-diff-id"),
        pytest.param({"tar": header(b"../x") + END}, UnsafeEntryError, id="leaves-the-root"),
        pytest.param({"tar": member(b"a") * 1001 + END}, LimitExceededError, id="too-many-entries"),
        pytest.param({"tar": member(b"a", bytes(9 << 20))}, LimitExceededError, id="bomb"),
        pytest.param({"media_type": "text/plain"}, UnsupportedMediaTypeError, id="no-layer"),
    ],
)
async def test_the_worker_says_what_is_wrong(tmp_path: Path, change: dict[str, object], error: type[Exception]) -> None:
    settings = ProxySettings(ingest=IngestSettings(workers=1, max_entries=1000, max_ratio=200.0))
    async with LayerPool(settings, tmp_path / "store") as pool:
        layer = job(tmp_path, **change)  # type: ignore[arg-type]
        with pytest.raises(error):
            await pool.ingest(layer, available=everything(layer), progress=ignore)
        good = job(tmp_path)
        assert await pool.ingest(good, available=everything(good), progress=ignore)


async def test_a_missing_file_is_an_os_error(pool: LayerPool, tmp_path: Path) -> None:
    layer = LayerJob(tmp_path / "nothing", 5, GZIP, Digest("0" * 64))
    with pytest.raises(OSError, match="nothing"):
        await pool.ingest(layer, available=everything(layer), progress=ignore)


@pytest.mark.fault(
    "proxy: an ingest worker killed",
    done="kill -9",
    promised="its own layers fail and are taken up again, others go on",
)
async def test_a_killed_worker_fails_its_own_layers_only(pool: LayerPool, tasks: Tasks, tmp_path: Path) -> None:
    first, second = Stalled(job(tmp_path)), Stalled(job(tmp_path, member(b"other", b"x" * 9000) + END))
    calls = []
    pids = []
    for stalled in (first, second):
        calls.append(stalled.spawn(pool, tasks))
        await asyncio.wait_for(stalled.is_reached.wait(), TIMEOUT)
        pids += [pid for pid in pool.pids if pid not in pids]
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match="signal 9"):
        await asyncio.wait_for(calls[0], TIMEOUT)
    second.goes_on.set()
    assert LayerIndex.from_bytes(await asyncio.wait_for(calls[1], TIMEOUT)).entries[0].path == b"other"
    again = job(tmp_path)
    assert await pool.ingest(again, available=everything(again), progress=ignore)


@pytest.mark.fault(
    "proxy: an ingest worker hangs",
    done="SIGSTOP of the worker process",
    promised="killed after ingest.stall_seconds without progress; its layers fail with the reason, the next one works",
)
async def test_a_worker_that_hangs_is_replaced(settings: ProxySettings, tasks: Tasks, tmp_path: Path) -> None:
    """Whoever waits for the layer learns it, so that nodes pull the usual way."""
    settings = msgspec.structs.replace(settings, ingest=msgspec.structs.replace(settings.ingest, stall_seconds=1.0))
    async with LayerPool(settings, tmp_path / "store") as pool:
        stalled = Stalled(job(tmp_path))
        call = stalled.spawn(pool, tasks)
        await asyncio.wait_for(stalled.is_worked_on.wait(), TIMEOUT)
        (pid,) = pool.pids
        os.kill(pid, signal.SIGSTOP)
        stalled.goes_on.set()
        with pytest.raises(WorkerStalledError, match="no progress"):
            await asyncio.wait_for(call, TIMEOUT)
        again = job(tmp_path)
        assert await pool.ingest(again, available=everything(again), progress=ignore)
        assert pid not in pool.pids


async def test_a_worker_that_waits_for_a_slow_download_does_not_hang(
    settings: ProxySettings, tasks: Tasks, tmp_path: Path
) -> None:
    """The time limit counts only while there are bytes to work on."""
    settings = msgspec.structs.replace(settings, ingest=msgspec.structs.replace(settings.ingest, stall_seconds=2.0))
    async with LayerPool(settings, tmp_path / "store") as pool:
        stalled = Stalled(job(tmp_path))
        call = stalled.spawn(pool, tasks)
        await asyncio.wait_for(stalled.is_worked_on.wait(), TIMEOUT)
        await asyncio.sleep(5)
        assert not call.done()
        stalled.goes_on.set()
        assert await asyncio.wait_for(call, TIMEOUT)


async def test_cancelling_ends_the_work_and_not_the_worker(pool: LayerPool, tasks: Tasks, tmp_path: Path) -> None:
    stalled = Stalled(job(tmp_path))
    call = stalled.spawn(pool, tasks)
    await asyncio.wait_for(stalled.is_worked_on.wait(), TIMEOUT)
    (pid,) = pool.pids
    assert len(os.listdir(f"/proc/{pid}/task")) > 1
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: len(os.listdir(f"/proc/{pid}/task")) == 1)
    again = job(tmp_path)
    assert await pool.ingest(again, available=everything(again), progress=ignore)
    assert pool.pids == [pid]


async def test_a_failed_download_is_what_the_caller_sees(pool: LayerPool, tmp_path: Path) -> None:
    layer = job(tmp_path)

    async def available(offset: int) -> int:
        if offset:
            raise ConnectionError("upstream is gone")
        return 100

    with pytest.raises(ConnectionError, match="upstream is gone"):
        await asyncio.wait_for(pool.ingest(layer, available=available, progress=ignore), TIMEOUT)


async def test_idle_workers_go(settings: ProxySettings, tmp_path: Path) -> None:
    """Fifty megabytes for each core are too much for doing nothing; the next layer starts another."""
    async with LayerPool(settings, tmp_path / "store", idle_seconds=0.05) as pool:
        for _ in range(2):
            layer = job(tmp_path)
            assert await pool.ingest(layer, available=everything(layer), progress=ignore)
            await until(lambda: not pool.pids)


async def test_a_store_that_can_not_be_opened_is_said(settings: ProxySettings, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = LmdbChunkStore.open(tmp_path / "store", quota_bytes=MiB)
    with store._index.environment.begin(write=True) as transaction:
        transaction.put(b"format", (99).to_bytes(4, "little"), db=store._index.meta)
    store.close()
    async with LayerPool(settings, tmp_path / "store") as pool:
        layer = job(tmp_path)
        with pytest.raises(StoreVersionError, match="format 99"):
            await pool.ingest(layer, available=everything(layer), progress=ignore)


def test_a_worker_ends_when_the_proxy_is_gone() -> None:
    """However the proxy died: the kernel closes its end of the pipe."""
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "fastpull.proxy.ingest.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        out, _ = worker.communicate(b"", timeout=TIMEOUT)
        assert out == b""
        assert worker.returncode == 0
    finally:
        with suppress(ProcessLookupError):
            worker.kill()


def test_unforeseen_failures_cross_as_such() -> None:
    """Known kinds come back as themselves, others as WorkerFailedError with the text."""

    class StrangeLayerError(LayerDigestError):
        pass

    assert type(rebuilt(describe(1, StrangeLayerError("x")))) is LayerDigestError
    failure = rebuilt(describe(1, ZeroDivisionError("by zero")))
    assert isinstance(failure, WorkerFailedError)
    assert str(failure) == "by zero"
    assert isinstance(rebuilt(describe(1, PermissionError(13, "denied", "f"))), OSError)
