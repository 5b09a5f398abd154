"""``/v1`` on an ingest with fakes, behind a real HTTP server on the loopback."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from fakes.ingest_assembly import Parts, assemble
from fakes.ingest_parts import FakeMirror

from fastpull.cache.memory_store import MemoryChunkStore
from fastpull.cache.scrub import Scrubs
from fastpull.cache.tables import Database
from fastpull.cache.tasks import Tasks
from fastpull.cache.writer import Writer
from fastpull.config.proxy import ProxySettings
from fastpull.proxy import chain_uses, learning
from fastpull.proxy.api.application import add_api
from fastpull.proxy.chain_uses import ChainUses
from fastpull.proxy.health import Health
from fastpull.proxy.ingest import state
from fastpull.proxy.learning import Plans
from fastpull.proxy.purge import Purge
from fastpull.proxy.recently_served import RecentlyServed
from fastpull.proxy.services import SERVICES, Services


@dataclass
class Api:
    client: TestClient[web.Request, web.Application]
    parts: Parts
    services: Services
    database: Database
    writer: Writer


@asynccontextmanager
async def serve_api(tmp_path: Path) -> AsyncIterator[Api]:
    (tmp_path / "blobs").mkdir()
    tables = (*state.TABLES, *learning.TABLES, *chain_uses.TABLES)
    with closing(Database.open(tmp_path / "db", tables=tables, map_bytes=64 << 20)) as database:
        async with Writer() as writer, Writer() as store_writer, aclosing(Tasks()) as tasks:
            store = MemoryChunkStore(quota_bytes=64 << 20)
            mirror = FakeMirror(tmp_path / "blobs")
            parts = assemble(mirror, database, store, writer, tasks)
            health = Health()
            services = Services(
                settings=ProxySettings(data_dir=tmp_path),
                health=health,
                store=store,
                store_writer=store_writer,
                mirror=mirror,  # type: ignore[arg-type]
                ingest=parts.ingest,
                restore=parts.restore,
                warms=parts.warms,
                plans=Plans(database, writer, tasks, parts.chains, parts.images.repositories),
                purge=Purge(parts.ingest, mirror, mirror, store, store_writer),  # type: ignore[arg-type]
                recently_served=RecentlyServed(),
                uses=ChainUses(database, parts.clock),
                scrubs=Scrubs(()),
            )
            await health.check(lambda: None)
            app = web.Application()
            app[SERVICES] = services
            add_api(app)
            async with TestClient(TestServer(app), auto_decompress=False) as client:
                yield Api(client, parts, services, database, writer)
