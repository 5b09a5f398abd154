"""The composition of the proxy: the one place that knows every concrete class."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, closing

from aiohttp import web

from fastpull.cache.lmdb_store import LmdbChunkStore
from fastpull.cache.scrub import Scrubs
from fastpull.cache.tables import Database
from fastpull.cache.tasks import Tasks
from fastpull.cache.writer import Writer
from fastpull.config.proxy import ProxySettings
from fastpull.proxy import chain_uses, learning
from fastpull.proxy.age_out import AgeOut
from fastpull.proxy.api.application import add_api
from fastpull.proxy.api.messaging import MAX_BODY_BYTES
from fastpull.proxy.chain_uses import ChainUses
from fastpull.proxy.health import Health
from fastpull.proxy.housekeeping import keep_house
from fastpull.proxy.ingest import state
from fastpull.proxy.ingest.chains import Chains
from fastpull.proxy.ingest.changes import Changes
from fastpull.proxy.ingest.images import Images
from fastpull.proxy.ingest.layers import Layers
from fastpull.proxy.ingest.pool import LayerPool
from fastpull.proxy.ingest.restore import Restore
from fastpull.proxy.ingest.service import Ingest
from fastpull.proxy.ingest.warm import Warms
from fastpull.proxy.learning import Plans
from fastpull.proxy.mirror import routes as mirror_routes
from fastpull.proxy.mirror import service as mirror_service
from fastpull.proxy.mirror.service import ManifestSeen, Mirror
from fastpull.proxy.purge import Purge
from fastpull.proxy.recently_served import RecentlyServed
from fastpull.proxy.scrub import checks_of_proxy
from fastpull.proxy.services import SERVICES, Services

PROBE_TABLE = "probe"
TABLES = (*state.TABLES, *learning.TABLES, *chain_uses.TABLES, *mirror_service.TABLES, PROBE_TABLE)

# Layers at work beyond the pool's processes wait for upstream's bytes, not for a core.
_LAYERS_AT_ONCE = 8


def build_app(settings: ProxySettings) -> web.Application:
    """The proxy as an application; what it stands on is opened when it starts and closed when it ends."""

    async def services(app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            app[SERVICES] = await open_services(settings, stack)
            app[mirror_routes.MIRROR] = app[SERVICES].mirror
            yield

    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.cleanup_ctx.append(services)
    app.on_shutdown.append(_let_waiters_go)
    add_api(app)
    app.add_routes(mirror_routes.ROUTES)
    return app


async def _let_waiters_go(app: web.Application) -> None:
    app[SERVICES].ingest.stop_waiting()
    app[SERVICES].scrubs.stop()


async def open_services(settings: ProxySettings, stack: AsyncExitStack) -> Services:
    """Open everything in the order in which it stands on each other; ``stack`` closes it in reverse."""
    store_path = settings.data_dir / "chunks"
    store = stack.enter_context(closing(LmdbChunkStore.open(store_path, quota_bytes=int(settings.cache.chunk_bytes))))
    database = stack.enter_context(closing(Database.open(settings.data_dir / "tables", tables=TABLES)))
    writer = await stack.enter_async_context(Writer("tables"))
    store_writer = await stack.enter_async_context(Writer("chunks"))
    pool = await stack.enter_async_context(LayerPool(settings, store_path))
    tasks = await stack.enter_async_context(aclosing(Tasks()))

    hearers: list[Callable[[ManifestSeen], None]] = []  # the ingest stands on the mirror and hears from it

    def on_manifest(seen: ManifestSeen) -> None:
        for hear in hearers:
            hear(seen)

    mirror = await stack.enter_async_context(Mirror.create(settings, database, tasks, on_manifest))
    tables, changes = state.IngestTables.of(database), Changes()
    layers = Layers(tables, writer, mirror.blobs, pool, tasks, changes, at_once=_LAYERS_AT_ONCE)
    chains = Chains(tables, writer, layers, pool, tasks, changes)
    images = Images(
        tables,
        writer,
        mirror.manifests,
        mirror.blobs,
        layers,
        chains,
        default_upstream=settings.mirror.default_upstream,
    )
    ingest = Ingest(images, layers, chains, tasks, changes, trigger=settings.ingest.trigger)
    hearers.append(ingest.on_manifest)
    restore = Restore(store, layers, chains, tasks)
    recently_served = RecentlyServed()
    store.protect(recently_served.__contains__)
    health = Health()
    probe = database.table(PROBE_TABLE, bytes)
    await health.check(lambda: probe.put("probe", b""))
    _ = tasks.spawn(health.watch(lambda: probe.put("probe", b"")), name="health")
    _ = tasks.spawn(keep_house(store, store_writer, recently_served), name="housekeeping")
    uses, plans = ChainUses(database), Plans(database, writer, tasks, chains, images.repositories)
    age_out = AgeOut(uses, tables, ingest, plans, writer, unused_seconds=settings.cache.unused_seconds)
    _ = tasks.spawn(age_out.for_ever(), name="age out")
    # Whatever ends above ends last: running ingests stop before the mirror and the pool that they use.
    stack.push_async_callback(tasks.aclose)
    return Services(
        settings=settings,
        health=health,
        store=store,
        store_writer=store_writer,
        mirror=mirror,
        ingest=ingest,
        restore=restore,
        warms=Warms(ingest, restore, store, tasks),
        plans=plans,
        purge=Purge(ingest, mirror.manifests, mirror.blobs, store, store_writer),
        recently_served=recently_served,
        uses=uses,
        scrubs=Scrubs(checks_of_proxy(store, store_writer, database, writer, mirror.blobs, layers, chains)),
    )
