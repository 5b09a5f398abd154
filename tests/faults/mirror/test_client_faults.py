"""Clients that vanish, hurry, dawdle or want odd things."""

import asyncio
import random
from pathlib import Path

import aiohttp
import pytest
from fakes.faults import StallAfter
from fakes.loops import on_both_loops
from fakes.mirror import RunningMirror, running_mirror, settings_for, until
from fakes.registry import FakeRegistry

from fastpull.cache.digest import Digest

BLOB = random.Random(21).randbytes(3_000_000)


async def read_some_and_vanish(mirror: RunningMirror, path: str, count: int, headers: dict[str, str]) -> None:
    async with aiohttp.ClientSession() as client:
        response = await client.get(f"{mirror.url}/v2/{path}", headers=headers)
        await response.content.readexactly(count)
        response.close()


@pytest.mark.fault(
    "proxy: a client hangs up",
    done="in the head, in the middle, at the end",
    promised="the fill and the other readers go on",
)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.97])
@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-"}], ids=["all", "range"])
@on_both_loops
async def test_a_client_that_vanishes_takes_nothing_with_it(
    share: float, headers: dict[str, str], tmp_path: Path
) -> None:
    """The others get the blob, upstream is asked once, and the blob is kept."""
    async with FakeRegistry(bytes_per_second=6e6) as registry:
        digest = registry.add_blob(BLOB)
        settings = settings_for(tmp_path, {"r.test": registry}, range_bytes=512 * 1024)
        path = f"app/blobs/{digest}?ns=r.test"
        async with running_mirror(settings) as mirror:
            got, *_ = await asyncio.gather(
                mirror.get(path),
                *(read_some_and_vanish(mirror, path, int(len(BLOB) * share), headers) for _ in range(3)),
            )
            assert got.body == BLOB
            await until(lambda: mirror.blobs_on_disk() == {digest: BLOB})
        assert registry.body_bytes == len(BLOB)


async def test_a_transfer_that_nobody_waits_for_lingers_and_stops(tmp_path: Path) -> None:
    """It goes on for a while, is stopped then, and the next reader pays only for what is missing."""
    async with FakeRegistry(bytes_per_second=2e6) as registry:
        digest = registry.add_blob(BLOB)
        settings = settings_for(tmp_path, {"r.test": registry}, range_bytes=256 * 1024, linger_seconds=0.05)
        path = f"app/blobs/{digest}?ns=r.test"
        async with running_mirror(settings) as mirror:
            await read_some_and_vanish(mirror, path, 1000, {})
            await until(lambda: not mirror.mirror.blobs.is_filling(Digest.parse(digest)))
            sent = registry.body_bytes
            assert 0 < sent < len(BLOB)
            registry.bytes_per_second = 0
            assert (await mirror.get(path)).body == BLOB
            assert registry.body_bytes < len(BLOB) + 2**21  # blocks of a MiB that were begun come again


async def test_a_transfer_that_is_nearly_done_is_completed(tmp_path: Path) -> None:
    async with FakeRegistry(bytes_per_second=10e6) as registry:
        digest = registry.add_blob(BLOB)
        settings = settings_for(tmp_path, {"r.test": registry}, linger_seconds=0.01)  # ranges of 8 MiB
        async with running_mirror(settings) as mirror:
            await read_some_and_vanish(mirror, f"app/blobs/{digest}?ns=r.test", 1000, {})
            await until(lambda: mirror.blobs_on_disk() == {digest: BLOB})
        assert registry.body_bytes == len(BLOB)


@on_both_loops
async def test_many_open_ended_ranges_closed_early(tmp_path: Path) -> None:
    """As containerd's parallel fetch: bytes=N-, read one chunk, hang up. Upstream still sends each byte once."""
    async with FakeRegistry(bytes_per_second=20e6) as registry:
        digest = registry.add_blob(BLOB)
        settings = settings_for(tmp_path, {"r.test": registry}, range_bytes=256 * 1024)
        path = f"app/blobs/{digest}?ns=r.test"
        chunk = 300_000

        async def fetch(mirror: RunningMirror, start: int) -> bytes:
            async with aiohttp.ClientSession() as client:
                response = await client.get(f"{mirror.url}/v2/{path}", headers={"Range": f"bytes={start}-"})
                assert response.status == 206
                data = await response.content.readexactly(min(chunk, len(BLOB) - start))
                response.close()
                return data

        async with running_mirror(settings) as mirror:
            starts = range(0, len(BLOB), chunk)
            chunks = await asyncio.gather(*(fetch(mirror, start) for start in starts))
            assert b"".join(chunks) == BLOB
        assert registry.body_bytes == len(BLOB)


@on_both_loops
async def test_a_range_far_ahead_is_fetched_first(tmp_path: Path) -> None:
    """A lazy puller reads the end of a cold blob: those bytes come before the others, unverified as it asked."""
    blob = random.Random(22).randbytes(8_000_000)
    async with FakeRegistry(bytes_per_second=4e6) as registry:
        digest = registry.add_blob(blob)
        settings = settings_for(tmp_path, {"r.test": registry}, range_bytes=256 * 1024)
        path = f"app/blobs/{digest}?ns=r.test"
        async with running_mirror(settings) as mirror:
            for wanted, expected in (
                ("bytes=-51", blob[-51:]),
                ("bytes=5000000-5000099", blob[5000000:5000100]),
                ("bytes=7999990-7999999", blob[-10:]),
                ("bytes=0-99", blob[:100]),
            ):
                got = await mirror.get(path, headers={"Range": wanted})
                assert (got.status, got.body) == (206, expected)
            assert mirror.mirror.blobs.is_filling(Digest.parse(digest))
            assert registry.body_bytes < len(blob) / 2


@pytest.mark.parametrize("state", ["cold", "growing", "complete"])
@on_both_loops
async def test_ranges_of_every_kind(state: str, tmp_path: Path) -> None:
    """Cold, growing or complete: the same answers."""
    async with FakeRegistry(bytes_per_second=5e6) as registry:
        digest = registry.add_blob(BLOB)
        size = len(BLOB)
        path = f"app/blobs/{digest}?ns=r.test"
        settings = settings_for(tmp_path, {"r.test": registry}, range_bytes=256 * 1024, linger_seconds=60)
        async with running_mirror(settings) as mirror:
            if state == "growing":
                await read_some_and_vanish(mirror, path, 1000, {})
            if state == "complete":
                await mirror.get(path)
                await until(lambda: mirror.mirror.blobs.has(Digest.parse(digest)))
            for header, expected in (
                ("bytes=10-19", BLOB[10:20]),
                ("bytes=0-0", BLOB[:1]),
                (f"bytes={size - 1}-", BLOB[-1:]),
                (f"bytes=0-{size * 2}", BLOB),
                ("bytes=0-", BLOB),
                ("bytes=-7", BLOB[-7:]),
                (f"bytes=-{size * 2}", BLOB),
                ("bytes=1000000-1999999", BLOB[1000000:2000000]),
            ):
                got = await mirror.get(path, headers={"Range": header})
                assert (got.status, got.body) == (206, expected), header
                start = size - len(expected) if header.startswith("bytes=-") else int(header[6:].partition("-")[0])
                assert got.headers["Content-Range"] == f"bytes {start}-{start + len(expected) - 1}/{size}"
            for header in ("bytes=1-2,4-5", "bytes=nonsense", "bytes=5-2"):
                got = await mirror.get(path, headers={"Range": header})
                assert (got.status, got.body) == (200, BLOB), header
            got = await mirror.get(path, headers={"Range": f"bytes={size}-"})
            assert (got.status, got.headers["Content-Range"]) == (416, f"bytes */{size}")
            right = await mirror.get(path, headers={"Range": "bytes=0-1", "If-Range": f'"{digest}"'})
            wrong = await mirror.get(path, headers={"Range": "bytes=0-1", "If-Range": '"other"'})
            assert (right.status, wrong.status) == (206, 200)
            assert (await mirror.get(path, headers={"If-None-Match": f'"{digest}"'})).status == 200  # 304 ends pulls


async def test_heads_come_before_the_bytes_when_upstream_dawdles(tmp_path: Path) -> None:
    """containerd 2.3 gives up on a head after 30 s: it is sent when the size is known, even without a byte."""
    async with FakeRegistry() as registry:
        digest = registry.add_blob(BLOB)
        registry.script("blob", StallAfter(0))
        settings = settings_for(tmp_path, {"r.test": registry}, answer_timeout_seconds=0.3, read_timeout_seconds=2.0)
        async with running_mirror(settings) as mirror:
            async with (
                asyncio.timeout(30),
                mirror.client.get(f"{mirror.url}/v2/app/blobs/{digest}?ns=r.test") as response,
            ):
                assert response.status == 200
                assert not mirror.mirror.blobs.has(Digest.parse(digest))
                assert await response.read() == BLOB


async def test_an_empty_blob(tmp_path: Path) -> None:
    async with FakeRegistry() as registry:
        digest = registry.add_blob(b"")
        async with running_mirror(settings_for(tmp_path, {"r.test": registry})) as mirror:
            for _ in range(2):
                got = await mirror.get(f"app/blobs/{digest}?ns=r.test")
                assert (got.status, got.body, got.headers["Content-Length"]) == (200, b"", "0")
                await until(lambda: mirror.blobs_on_disk() == {digest: b""})


async def test_a_manifest_is_no_blob(tmp_path: Path) -> None:
    """containerd asks for a manifest as a blob when all else failed, and would store it as octet-stream."""
    async with FakeRegistry() as registry:
        manifest = registry.add_image("app", "v1", BLOB)
        registry.add_blob(registry.manifests["app", "v1"][1])
        config = next(digest for digest, data in registry.blobs.items() if data[:1] == b"{" and b"arch" in data)
        async with running_mirror(settings_for(tmp_path, {"r.test": registry})) as mirror:
            for method in ("HEAD", "GET", "HEAD"):
                assert (await mirror.request(method, f"app/blobs/{manifest}?ns=r.test")).status == 404
                assert (await mirror.request(method, f"app/blobs/{config}?ns=r.test")).status == 200
