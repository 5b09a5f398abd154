"""What the routes stand on."""

from __future__ import annotations

from dataclasses import dataclass

from aiohttp import web

from fastpull.cache.scrub import Scrubs
from fastpull.cache.store import ChunkStore
from fastpull.cache.writer import Writer
from fastpull.config.proxy import ProxySettings
from fastpull.proxy.chain_uses import ChainUses
from fastpull.proxy.health import Health
from fastpull.proxy.ingest.restore import Restore
from fastpull.proxy.ingest.service import Ingest
from fastpull.proxy.ingest.warm import Warms
from fastpull.proxy.learning import Plans
from fastpull.proxy.mirror.service import Mirror
from fastpull.proxy.purge import Purge
from fastpull.proxy.recently_served import RecentlyServed


@dataclass(frozen=True, slots=True)
class Services:
    """One of each, made and closed by ``app.py``."""

    settings: ProxySettings
    health: Health
    store: ChunkStore
    store_writer: Writer
    mirror: Mirror
    ingest: Ingest
    restore: Restore
    warms: Warms
    plans: Plans
    purge: Purge
    recently_served: RecentlyServed
    uses: ChainUses
    scrubs: Scrubs


SERVICES = web.AppKey("services", Services)
