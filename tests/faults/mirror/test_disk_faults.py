"""Faults of the disk that holds the blobs."""

import asyncio
import errno
import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fakes.faults import StallAfter
from fakes.loops import on_both_loops
from fakes.mirror import running_mirror, settings_for, until
from fakes.registry import FakeRegistry

from fastpull.cache.digest import Digest
from fastpull.proxy.errors import BlobStoreFullError
from fastpull.proxy.mirror import sink
from fastpull.proxy.mirror.blobs import Blobs, BlobSource
from fastpull.proxy.mirror.partial import Partial

BLOB = random.Random(11).randbytes(2_000_000)
OTHER = random.Random(12).randbytes(2_000_000)


def failing_write(code: int, after_bytes: int) -> Callable[..., int]:
    """A write that fails once so many bytes have been written."""
    write = sink._write_all
    written = [0]

    def wrapped(fd: int, position: int, batch: list[Any]) -> int:
        if written[0] >= after_bytes:
            raise OSError(code, os.strerror(code))
        written[0] += sum(map(len, batch))
        return write(fd, position, batch)

    return wrapped


@pytest.mark.fault(
    "proxy: blob disk full or failing",
    done="ENOSPC, EIO after some bytes",
    promised="the pull goes on, uncached",
)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("after_bytes", [0, 500_000])
@on_both_loops
async def test_a_full_or_broken_disk_does_not_fail_a_pull(
    code: int, after_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the byte on that can not be kept, clients get the blob straight from upstream; the rest is swept."""
    async with FakeRegistry(bytes_per_second=20e6) as registry:
        digest = registry.add_blob(BLOB)
        settings = settings_for(tmp_path, {"r.test": registry}, range_bytes=256 * 1024)
        async with running_mirror(settings) as mirror:
            monkeypatch.setattr(sink, "_write_all", failing_write(code, after_bytes))
            path = f"app/blobs/{digest}?ns=r.test"
            answers = await asyncio.gather(*(mirror.get(path) for _ in range(5)))
            assert [answer.body == BLOB for answer in answers] == [True] * 5
            part = await mirror.get(path, headers={"Range": "bytes=1500000-1500009"})
            assert (part.status, part.body) == (206, BLOB[1500000:1500010])
            assert mirror.blobs_on_disk() == {}
            await until(lambda: not list((tmp_path / "fills").iterdir()))
            assert mirror.mirror.blobs.used_bytes == 0


async def test_a_blob_that_can_not_be_committed_is_still_delivered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers get the verified bytes although the rename fails; the next pull tries again."""
    async with FakeRegistry() as registry:
        digest = registry.add_blob(BLOB)
        async with running_mirror(settings_for(tmp_path, {"r.test": registry})) as mirror:
            with monkeypatch.context() as patch:
                patch.setattr(Partial, "commit", lambda self, target: (_ for _ in ()).throw(OSError(errno.EIO, "I/O")))
                assert (await mirror.get(f"app/blobs/{digest}?ns=r.test")).body == BLOB
                await until(lambda: not mirror.mirror.blobs.is_filling(Digest.parse(digest)))
                assert mirror.blobs_on_disk() == {}
            await asyncio.sleep(0)
            assert (await mirror.get(f"app/blobs/{digest}?ns=r.test")).body == BLOB


async def test_a_quota_that_is_too_small_passes_through(tmp_path: Path) -> None:
    """A blob larger than the quota is delivered and not kept; a fill for our own use is refused."""
    async with FakeRegistry() as registry:
        digest = registry.add_blob(BLOB)
        settings = settings_for(tmp_path, {"r.test": registry}, blob_bytes=1_000_000)
        async with running_mirror(settings) as mirror:
            assert (await mirror.get(f"app/blobs/{digest}?ns=r.test")).body == BLOB
            assert mirror.blobs_on_disk() == {}
            with pytest.raises(BlobStoreFullError):
                async with mirror.mirror.blobs.open(BlobSource("r.test", "app", Digest.parse(digest))):
                    pass


async def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    """The quota is kept by evicting; what is pinned or being read stays."""
    async with FakeRegistry() as registry:
        blobs = {registry.add_blob(data): data for data in (random.Random(n).randbytes(400_000) for n in range(6))}
        digests = [Digest.parse(text) for text in blobs]
        settings = settings_for(tmp_path, {"r.test": registry}, blob_bytes=1_300_000)
        async with running_mirror(settings) as mirror:
            store = mirror.mirror.blobs
            for digest in digests[:3]:
                await mirror.get(f"app/blobs/{digest}?ns=r.test")
                await until(lambda digest=digest: store.has(digest))  # type: ignore[misc]
            store.pin(digests[0])
            async with store.open(BlobSource("r.test", "app", digests[1])):
                for digest in digests[3:5]:
                    await mirror.get(f"app/blobs/{digest}?ns=r.test")
                    await until(lambda digest=digest: store.has(digest))  # type: ignore[misc]
                assert [store.has(digest) for digest in digests] == [True, True, False, False, True, False]
            store.unpin(digests[0])
            await mirror.get(f"app/blobs/{digests[5]}?ns=r.test")
            await until(lambda: store.has(digests[5]))
            assert [store.has(digest) for digest in digests] == [False, True, False, False, True, True]
            assert store.used_bytes <= 1_300_000


def is_at_rest(blobs: Blobs, digest: Digest) -> bool:
    """A blob has its name a moment before its fill ends, and who comes in that moment reads what the fill has open."""
    return blobs.has(digest) and not blobs.is_filling(digest)


@pytest.mark.fault(
    "rot: a blob file that was cut",
    done="truncated, emptied",
    promised="never served, fetched again",
)
async def test_a_file_that_was_cut_is_fetched_again(tmp_path: Path) -> None:
    """An empty or short file under a blob's name is never served: not after a restart, nor before."""
    async with FakeRegistry() as registry:
        digest = registry.add_blob(BLOB)
        settings = settings_for(tmp_path, {"r.test": registry})
        blob = Digest.parse(digest)
        path = tmp_path / "blobs" / "sha256" / digest[7:9] / digest[7:]
        for size in (0, 1000, len(BLOB) + 1):
            async with running_mirror(settings) as mirror:
                blobs = mirror.mirror.blobs
                assert (await mirror.get(f"app/blobs/{digest}?ns=r.test")).body == BLOB
                await until(partial(is_at_rest, blobs, blob))
                os.truncate(path, size)
                assert (await mirror.get(f"app/blobs/{digest}?ns=r.test")).body == BLOB
                await until(partial(is_at_rest, blobs, blob))
            os.truncate(path, size)
            async with running_mirror(settings) as mirror:
                assert mirror.blobs_on_disk() == {}


async def test_a_broken_transfer_goes_on_after_a_restart(tmp_path: Path) -> None:
    """What a stopped fill brought is not asked for again, and counts toward the quota meanwhile."""
    async with FakeRegistry() as registry:
        size = 4 * 2**20
        blob = random.Random(13).randbytes(size)
        digest = registry.add_blob(blob)
        registry.script("blob", StallAfter(3 * 2**20))
        settings = settings_for(tmp_path, {"r.test": registry}, linger_seconds=60.0, read_timeout_seconds=60.0)
        async with running_mirror(settings) as mirror:
            reader = asyncio.ensure_future(mirror.get(f"app/blobs/{digest}?ns=r.test"))  # noqa: TID251
            await until(lambda: registry.body_bytes >= 3 * 2**20)
            fill = mirror.mirror.blobs._running[Digest.parse(digest)].fill
            await until(lambda: fill.partial.spans.total >= 3 * 2**20)
            reader.cancel()
        sent = registry.body_bytes
        async with running_mirror(settings) as mirror:
            assert mirror.mirror.blobs.used_bytes >= 2 * 2**20
            got = await mirror.get(f"app/blobs/{digest}?ns=r.test")
            assert got.body == blob
            await until(lambda: mirror.blobs_on_disk() == {digest: blob})
        assert registry.body_bytes - sent == size - 3 * 2**20


@pytest.mark.fault(
    "rot: leftovers of fills",
    done="journals and data of every wrong kind",
    promised="the next pull gives the right bytes",
)
@pytest.mark.parametrize("damage", ["map", "part", "both", "boot", "none of ours"])
async def test_damaged_leftovers_are_swept(damage: str, tmp_path: Path) -> None:
    """Whatever stands in ``fills/`` at the start, the next pull gives the right bytes."""
    async with FakeRegistry() as registry:
        digest = registry.add_blob(BLOB)
        fills = tmp_path / "fills"
        fills.mkdir()
        partial = Partial.open(fills, Digest.parse(digest))
        partial.begin(len(BLOB))
        os.pwrite(partial.fd, BLOB[: 2**20], 0)
        partial.mark(0, 2**20)
        partial.close()
        part, chart = fills / f"{digest[7:]}.part", fills / f"{digest[7:]}.map"
        if damage in ("map", "both"):
            chart.write_bytes(chart.read_bytes()[:30])
        if damage in ("part", "both"):
            os.truncate(part, 5)
        if damage == "boot":
            raw = bytearray(chart.read_bytes())
            raw[24:28] = b"0000"
            chart.write_bytes(raw)
        if damage == "none of ours":
            (fills / "hello.txt").write_text("x")
            (fills / f"{'0' * 64}.map").write_text("x")
        async with running_mirror(settings_for(tmp_path, {"r.test": registry})) as mirror:
            kept = damage == "none of ours"
            assert sorted(path.name for path in fills.iterdir()) == (sorted([part.name, chart.name]) if kept else [])
            assert (await mirror.get(f"app/blobs/{digest}?ns=r.test")).body == BLOB
            assert registry.body_bytes == len(BLOB) - (2**20 if kept else 0)


async def test_wrong_bytes_in_a_leftover_are_found_out(tmp_path: Path) -> None:
    """A resumed fill is verified from its first byte; after the mismatch it starts anew."""
    async with FakeRegistry() as registry:
        digest = registry.add_blob(BLOB)
        fills = tmp_path / "fills"
        fills.mkdir()
        partial = Partial.open(fills, Digest.parse(digest))
        partial.begin(len(BLOB))
        partial.mark(0, 2**20)  # zeros
        partial.close()
        settings = settings_for(tmp_path, {"r.test": registry}, mismatch_seconds=0.2)
        async with running_mirror(settings) as mirror:
            with pytest.raises(Exception, match="payload"):
                await mirror.get(f"app/blobs/{digest}?ns=r.test")
            assert mirror.blobs_on_disk() == {}
            async with asyncio.timeout(30):
                while (got := await mirror.get(f"app/blobs/{digest}?ns=r.test")).status == 503:
                    await asyncio.sleep(0.05)
            assert got.body == BLOB
