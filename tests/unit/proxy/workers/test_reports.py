"""What a follower did counts as if the leader had done it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from fakes.mirror import running_mirror, settings_for, until
from fakes.registry import FakeRegistry
from prometheus_client import REGISTRY

from fastpull.cache.digest import ChunkId, Digest, chunk_id
from fastpull.cache.errors import CacheError
from fastpull.proxy import metrics
from fastpull.proxy.recently_served import RecentlyServed
from fastpull.proxy.workers import reports
from fastpull.proxy.workers.messages import LENGTH, MAX_CHUNKS, Count, Report, frame
from fastpull.proxy.workers.tally import Tally

LABELS = {"route": "blobs", "outcome": "hit", "upstream": "tally.test"}


class FakeStore:
    def __init__(self) -> None:
        self.touched: set[ChunkId] = set()

    def touch(self, chunks: list[ChunkId]) -> None:
        self.touched.update(chunks)


@pytest.fixture
def services() -> Iterator[Any]:
    yield SimpleNamespace(recently_served=RecentlyServed(bits=1 << 16), store=FakeStore())


def value(name: str, labels: dict[str, str]) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def ids(count: int) -> list[ChunkId]:
    return [chunk_id(str(n).encode()) for n in range(count)]


def test_a_report_tells_only_what_is_new() -> None:
    tally = Tally(7)
    tally.take()  # what other tests have counted in this process
    metrics.REQUESTS.labels(**LABELS).inc(3)
    tally.use_chunks(ids(2))

    report = tally.take()

    assert Count("requests", ("blobs", "hit", "tally.test"), 3.0) in report.counts
    assert Count("worker_answers", ("7",), 4.0) in report.counts, "three blobs and a batch"
    assert len(report.chunks) == 64
    assert tally.take() == Report()


def test_a_report_has_a_bound() -> None:
    tally = Tally(7)
    for start in range(0, MAX_CHUNKS + 3 * 4096, 4096):
        tally.use_chunks([ChunkId(n.to_bytes(32, "big")) for n in range(start, start + 4096)])

    assert len(tally.take().chunks) <= MAX_CHUNKS * 32


def test_a_report_survives_the_pipe() -> None:
    report = Report(counts=(Count("requests", ("a", "b", "c"), 1.0),), chunks=b"x" * 32, blobs=("sha256:0",))
    data = frame(report)

    assert LENGTH.unpack(data[:4]) == (len(data) - 4,)
    assert msgspec.msgpack.decode(data[4:], type=Report) == report


async def test_used_chunks_are_touched_and_kept_from_eviction(services: Any) -> None:
    used = ids(5000)

    await reports.take(services, Report(chunks=b"".join(used)))

    assert services.store.touched == set(used)
    assert all(chunk in services.recently_served for chunk in used)


async def test_counters_grow_by_what_was_told(services: Any) -> None:
    before = value("fastpull_proxy_requests_total", LABELS)

    await reports.take(services, Report(counts=(Count("requests", tuple(LABELS.values()), 5.0),)))

    assert value("fastpull_proxy_requests_total", LABELS) == before + 5


@pytest.mark.parametrize(
    "report",
    [
        Report(counts=(Count("process_cpu_seconds", (), 1.0),)),
        Report(counts=(Count("requests", ("too few",), 1.0),)),
        Report(counts=(Count("chunks_sent", (), -1.0),)),
        Report(chunks=b"no id"),
        Report(blobs=("../../etc/passwd",)),
    ],
)
async def test_what_can_be_no_report_is_refused(report: Report, services: Any) -> None:
    with pytest.raises((ValueError, KeyError, CacheError)):
        await reports.take(services, report)


async def test_a_used_blob_is_as_young_as_one_that_the_leader_sent(tmp_path: Path) -> None:
    """Its last use, by which blobs are evicted, is that of the report."""
    async with FakeRegistry() as registry:
        digest = registry.add_blob(b"blob" * 1000)
        async with running_mirror(settings_for(tmp_path, {"r.test": registry})) as mirror:
            assert (await mirror.get(f"app/blobs/{digest}?ns=r.test")).status == 200
            files = mirror.mirror.blobs.files
            await until(lambda: files.size(Digest.parse(digest)) is not None)
            path = files.path(Digest.parse(digest))
            old = time.time() - 86400
            os.utime(path, (old, old))
            for entry in files._entries.values():
                entry.used = old

            await reports.take(SimpleNamespace(mirror=mirror.mirror), Report(blobs=(digest,)))  # type: ignore[arg-type]

            assert path.stat().st_mtime > old + 3600
