"""The mirror as a process: many clients, kill -9, memory."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from fakes.faults import StallAfter
from fakes.herd import read_all
from fakes.registry import FakeRegistry
from harness.fault_rows import Seen
from harness.proxy import Proxy

MiB = 2**20
NAME = "registry.test"


def settings(registry: FakeRegistry, further: str = "") -> str:
    return f'{further}\n[ingest]\ntrigger = "on-warm"\n[upstreams."{NAME}"]\nurl = "{registry.url}"\n'


@asynccontextmanager
async def running(proxy: Proxy):  # type: ignore[no-untyped-def]
    """Started and stopped off the loop, which serves the registry meanwhile."""
    await asyncio.to_thread(proxy.start)
    try:
        yield proxy
    finally:
        await asyncio.to_thread(proxy.stop)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def read_and_compare(client: aiohttp.ClientSession, url: str, blob: bytes, start: int = 0) -> None:
    """Compare as it comes, so that two hundred readers need no room for two hundred blobs."""
    headers = {"Range": f"bytes={start}-"} if start else {}
    view = memoryview(blob)
    async with client.get(url, headers=headers) as response:
        assert response.status == (206 if start else 200)
        position = start
        while data := await response.content.readany():
            assert view[position : position + len(data)] == data
            position += len(data)
    assert position == len(blob)


@pytest.mark.slow
async def test_two_hundred_clients_on_one_cold_blob(tmp_path: Path) -> None:
    """Upstream sends each byte once, all readers get all bytes, and the proxy's memory stays flat."""
    blob = random.Random(1).randbytes(64 * MiB)
    async with FakeRegistry() as registry:
        digest = registry.add_blob(blob)
        async with running(Proxy(tmp_path, [], extra_settings=settings(registry))) as proxy:
            pid = proxy.process.pid
            sizes = [resident_bytes(pid)]
            path = f"/v2/app/blobs/{digest}?ns={NAME}"
            readers = await asyncio.to_thread(
                read_all, proxy.port, path, blob, 200, while_reading=lambda: sizes.append(resident_bytes(pid))
            )
        assert [reader.error for reader in readers] == [""] * 200
        assert [reader.position for reader in readers] == [len(blob)] * 200
        assert registry.body_bytes == len(blob)
        assert max(sizes) - sizes[0] < 48 * MiB


@pytest.mark.fault(
    "proxy: killed during a fill",
    done="kill -9 after 9 of 12 MiB",
    promised="the fill goes on where it was",
)
async def test_kill_in_the_middle_of_a_fill(tmp_path: Path, seen: Seen) -> None:
    """After kill -9 and a start, the fill goes on where it was; what was served is right."""
    blob = random.Random(2).randbytes(12 * MiB)
    async with FakeRegistry() as registry:
        digest = registry.add_blob(blob)
        registry.script("blob", StallAfter(9 * MiB + 1000))
        proxy = Proxy(tmp_path, [], extra_settings=settings(registry, '[mirror]\nrange_bytes = "16MiB"\n'))
        url = f"{proxy.url}/v2/app/blobs/{digest}?ns={NAME}"
        async with running(proxy), aiohttp.ClientSession() as client:
            async with client.get(url) as response:
                assert await response.content.readexactly(9 * MiB) == blob[: 9 * MiB]
                await asyncio.to_thread(proxy.process.kill)
        sent = registry.body_bytes
        async with running(proxy), aiohttp.ClientSession() as client:
            await read_and_compare(client, url, blob, start=9 * MiB)
            await read_and_compare(client, url, blob)
            path = tmp_path / "data" / "blobs" / "sha256" / digest[7:9] / digest[7:]
            await until(path.exists)
            assert path.read_bytes() == blob
            assert registry.body_bytes - sent <= 3 * MiB + 1000
    seen("at most 3 of 12 MiB fetched again")


@pytest.mark.fault(
    "proxy: killed under four pulls at once",
    done="3 times kill -9",
    promised="clients have a prefix of the right bytes, and all of them after the start",
)
async def test_kills_at_random_moments(tmp_path: Path) -> None:
    """Whatever the moment, after the next start every blob that is there is whole and right."""
    source = random.Random(3)
    blobs = [source.randbytes(2 * MiB) for _ in range(4)]
    async with FakeRegistry(bytes_per_second=30e6) as registry:
        digests = [registry.add_blob(blob) for blob in blobs]
        proxy = Proxy(tmp_path, [], extra_settings=settings(registry, '[mirror]\nrange_bytes = "256KiB"\n'))
        for moment in (0.0, 0.03, 0.1):
            async with running(proxy), aiohttp.ClientSession() as client:
                pulls = asyncio.gather(
                    *(pull(client, f"{proxy.url}/v2/app/blobs/{digest}?ns={NAME}") for digest in digests)
                )
                await asyncio.sleep(moment)
                await asyncio.to_thread(proxy.process.kill)
                for got, blob in zip(await pulls, blobs, strict=True):
                    assert blob.startswith(got)
        async with running(proxy), aiohttp.ClientSession() as client:
            for digest, blob in zip(digests, blobs, strict=True):
                await read_and_compare(client, f"{proxy.url}/v2/app/blobs/{digest}?ns={NAME}", blob)


async def pull(client: aiohttp.ClientSession, url: str) -> bytes:
    """As much as comes."""
    got = bytearray()
    try:
        async with client.get(url) as response:
            while response.status == 200 and (data := await response.content.readany()):
                got += data
    except aiohttp.ClientError:
        pass
    return bytes(got)
