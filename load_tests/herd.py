"""Many nodes pull one image at once through an empty proxy.

Each node asks for the manifest and then for all blobs, three at a time, as containerd does. Counted is what upstream
had to send, and how long the nodes took.

    .venv/bin/python load_tests/herd.py [--json FILE] [--nodes N] [--blob-mib M] [--clients N]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import aiohttp
from fakes.herd import read_all
from fakes.registry import FakeRegistry
from harness.proxy import Proxy
from report import Report, main

MIB = 2**20
NAME = "r.test"
LAYERS_AT_ONCE = 3  # containerd's max_concurrent_downloads


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / MIB


def proxy_for(root: Path, registry: FakeRegistry) -> Proxy:
    settings = f'[ingest]\ntrigger = "on-warm"\n[upstreams."{NAME}"]\nurl = "{registry.url}"\n'
    return Proxy(root, [], extra_settings=settings)


async def node(client: aiohttp.ClientSession, url: str, blobs: dict[str, bytes]) -> float:
    """One pull; how long it took."""
    started = time.perf_counter()
    async with client.get(f"{url}/v2/app/manifests/v1?ns={NAME}") as response:
        assert response.status == 200
        await response.read()
    slots = asyncio.Semaphore(LAYERS_AT_ONCE)

    async def blob(digest: str, expected: bytes) -> None:
        async with slots, client.get(f"{url}/v2/app/blobs/{digest}?ns={NAME}") as response:
            assert response.status == 200
            position = 0
            while data := await response.content.readany():
                assert expected.startswith(data, position), "wrong bytes"
                position += len(data)
            assert position == len(expected), "short"

    await asyncio.gather(*(blob(digest, data) for digest, data in blobs.items()))
    return time.perf_counter() - started


async def image_herd(report: Report, root: Path, nodes: int) -> None:
    source = random.Random(1)
    async with FakeRegistry() as registry:
        registry.add_image("app", "v1", *(source.randbytes(2 * MIB) for _ in range(5)))
        size = sum(map(len, registry.blobs.values())) + len(registry.manifests["app", "v1"][1])
        proxy = proxy_for(root, registry)
        await asyncio.to_thread(proxy.start)
        try:
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:
                times = await asyncio.gather(*(node(client, proxy.url, registry.blobs) for _ in range(nodes)))
        finally:
            await asyncio.to_thread(proxy.stop)
        times.sort()
        report.add("nodes", nodes, "")
        report.add("upstream_bytes_per_image_byte", registry.body_bytes / size, "ratio", at_most=1.0)
        report.add("p50_seconds", statistics.median(times), "s")
        ratio = times[int(len(times) * 0.99)] / statistics.median(times)
        report.add("p99_over_p50", ratio, "ratio", at_most=2.0)


async def blob_herd(report: Report, root: Path, clients: int, mib: int) -> None:
    source = random.Random(2)
    blob = b"".join(source.randbytes(MIB) for _ in range(mib))  # at most 255 MiB come in one call
    async with FakeRegistry() as registry:
        digest = registry.add_blob(blob)
        proxy = proxy_for(root, registry)
        await asyncio.to_thread(proxy.start)
        try:
            pid = proxy.process.pid
            sizes = [resident_mib(pid)]
            path = f"/v2/app/blobs/{digest}?ns={NAME}"
            started = time.perf_counter()
            readers = await asyncio.to_thread(
                read_all,
                proxy.port,
                path,
                blob,
                clients,
                while_reading=lambda: sizes.append(resident_mib(pid)),
            )
            seconds = time.perf_counter() - started
        finally:
            await asyncio.to_thread(proxy.stop)
        report.add(f"one_blob_{mib}_mib_clients", clients, "")
        report.add("one_blob_right_answers", sum(not reader.error for reader in readers), "", at_least=clients)
        report.add("one_blob_upstream_bytes_per_byte", registry.body_bytes / len(blob), "ratio", at_most=1.0)
        report.add("one_blob_proxy_growth_mib", max(sizes) - sizes[0], "MiB", at_most=48)
        report.add("one_blob_gb_s_to_clients", clients * len(blob) / seconds / 1e9, "GB/s")


def measure(report: Report, args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="fastpull-herd-") as name:
        asyncio.run(image_herd(report, Path(name) / "image", args.nodes))
        asyncio.run(blob_herd(report, Path(name) / "blob", args.clients, args.blob_mib))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=500)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--blob-mib", type=int, default=256)
    main("A herd of nodes on a cold proxy", measure, parser)
