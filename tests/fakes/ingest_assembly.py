"""An ingest on a real database and in-memory store, with fakes for the network and the workers."""

from __future__ import annotations

from dataclasses import dataclass

from fakes.ingest_parts import FakeMirror, FakePool

from fastpull.cache.memory_store import MemoryChunkStore
from fastpull.cache.tables import Database
from fastpull.cache.tasks import Tasks
from fastpull.cache.writer import Writer
from fastpull.proxy.ingest.chains import Chains
from fastpull.proxy.ingest.changes import Changes
from fastpull.proxy.ingest.images import Images
from fastpull.proxy.ingest.layers import Layers
from fastpull.proxy.ingest.restore import Restore
from fastpull.proxy.ingest.service import Ingest, Trigger
from fastpull.proxy.ingest.state import IngestTables
from fastpull.proxy.ingest.warm import Warms


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Parts:
    mirror: FakeMirror
    pool: FakePool
    store: MemoryChunkStore
    tables: IngestTables
    layers: Layers
    chains: Chains
    images: Images
    ingest: Ingest
    restore: Restore
    warms: Warms
    clock: Clock


def assemble(
    mirror: FakeMirror,
    database: Database,
    store: MemoryChunkStore,
    writer: Writer,
    tasks: Tasks,
    *,
    trigger: Trigger = "on-pull",
) -> Parts:
    tables, changes, clock, pool = IngestTables.of(database), Changes(), Clock(), FakePool(store)
    layers = Layers(tables, writer, mirror, pool, tasks, changes, at_once=4, clock=clock)
    chains = Chains(tables, writer, layers, pool, tasks, changes)
    images = Images(tables, writer, mirror, mirror, layers, chains, default_upstream="registry.test", clock=clock)
    ingest = Ingest(images, layers, chains, tasks, changes, trigger=trigger, clock=clock)
    restore = Restore(store, layers, chains, tasks)
    return Parts(
        mirror, pool, store, tables, layers, chains, images, ingest, restore,
        Warms(ingest, restore, store, tasks), clock,
    )  # fmt: skip
