"""A mirror in this process, and a client for it."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from fakes.registry import FakeRegistry

from fastpull.cache.tables import Database
from fastpull.cache.tasks import Tasks
from fastpull.config.proxy import CacheSettings, MirrorSettings, ProxySettings, UpstreamSettings
from fastpull.config.units import ByteSize
from fastpull.proxy.mirror.routes import MIRROR, ROUTES
from fastpull.proxy.mirror.runner import MirrorRunner
from fastpull.proxy.mirror.service import TABLES, ManifestSeen, Mirror

FAST = {
    "connect_timeout_seconds": 5.0,
    "read_timeout_seconds": 5.0,
    "answer_timeout_seconds": 10.0,
    "negative_ttl_seconds": 0.0,
    "resume_attempts": 3,
    "linger_seconds": 0.2,
}
"""Timeouts for tests: short where a fault runs into them, long enough for a busy machine."""


def settings_for(
    data_dir: Path,
    upstreams: Mapping[str, FakeRegistry | UpstreamSettings],
    *,
    blob_bytes: int = 1 << 30,
    **mirror: Any,
) -> ProxySettings:
    return ProxySettings(
        data_dir=data_dir,
        mirror=MirrorSettings(**{**FAST, **mirror}),
        cache=CacheSettings(blob_bytes=ByteSize(blob_bytes)),
        upstreams={
            name: UpstreamSettings(url=upstream.url, redirect_private=True)
            if isinstance(upstream, FakeRegistry)
            else upstream
            for name, upstream in upstreams.items()
        },
    )


@dataclass
class Got:
    """An answer, its body complete."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class RunningMirror:
    url: str
    mirror: Mirror
    client: aiohttp.ClientSession
    manifests_seen: list[ManifestSeen] = field(default_factory=list)

    async def get(self, path: str, **kwargs: Any) -> Got:
        """Raise ``aiohttp.ClientPayloadError`` or another ``ClientError`` when the body is short."""
        return await self.request("GET", path, **kwargs)

    async def request(self, method: str, path: str, **kwargs: Any) -> Got:
        async with asyncio.timeout(60), self.client.request(method, f"{self.url}/v2/{path}", **kwargs) as response:
            return Got(response.status, response.headers, await response.read())

    def blobs_on_disk(self) -> dict[str, bytes]:
        root = self.mirror.settings.data_dir / "blobs" / "sha256"
        return {f"sha256:{path.name}": path.read_bytes() for path in root.glob("??/*")}


@asynccontextmanager
async def running_mirror(
    settings: ProxySettings, *, fast_lane: bool = True, tls: ssl.SSLContext | None = None
) -> AsyncIterator[RunningMirror]:
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    seen: list[ManifestSeen] = []
    with closing(Database.open(settings.data_dir / "tables", tables=TABLES, map_bytes=1 << 28)) as database:
        async with aclosing(Tasks()) as tasks, Mirror.create(settings, database, tasks, seen.append) as mirror:
            app = web.Application()
            app[MIRROR] = mirror
            app.add_routes(ROUTES)
            runner = (MirrorRunner if fast_lane else web.AppRunner)(
                app, shutdown_timeout=0.1, access_log=None, max_line_size=65536, max_field_size=65536
            )
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls)
            await site.start()
            try:
                async with aiohttp.ClientSession(auto_decompress=False) as client:
                    url = f"{'https' if tls else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
                    yield RunningMirror(url, mirror, client, seen)
            finally:
                await runner.cleanup()


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for a condition; fail with ``TimeoutError`` when it does not come true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)
