"""Removes what no quota bounds and nobody has asked for in a long time: plans, built chains, layer indexes.

All of it comes back by itself: a plan is inherited or learned again, a chain is built again from its indexes, a layer
is ingested again from any registry that is known to hold it. What is needed for that stays (image, layer and link
records, some hundred bytes to a few KiB each). LMDB uses freed pages again; the file does not shrink.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from fastpull.cache.errors import CacheError
from fastpull.cache.writer import Writer
from fastpull.proxy import metrics
from fastpull.proxy.ageing import Aged, Kept, aged, chains_in_use
from fastpull.proxy.chain_uses import ChainUses
from fastpull.proxy.ingest.service import Ingest
from fastpull.proxy.ingest.state import IngestTables
from fastpull.proxy.learning import Plans

log = logging.getLogger(__name__)

PERIOD_SECONDS = 3600.0
MOST_AT_ONCE = 1000  # removals in one round: each is a durable commit, and waits in line with those of ingests


class AgeOut:
    """Ages by the wall clock, in rounds; ``unused_seconds`` of 0 keeps everything for ever."""

    def __init__(
        self,
        uses: ChainUses,
        tables: IngestTables,
        ingest: Ingest,
        plans: Plans,
        writer: Writer,
        *,
        unused_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._uses = uses
        self._tables = tables
        self._ingest = ingest
        self._plans = plans
        self._writer = writer
        self._unused_seconds = unused_seconds
        self._clock = clock

    async def for_ever(self) -> None:
        while True:
            try:
                await self.round()
            except (CacheError, OSError) as exc:
                log.warning("can not remove what nobody has asked for in a long time: %s", exc)
            await asyncio.sleep(PERIOD_SECONDS)

    async def round(self, most: int = MOST_AT_ONCE) -> Aged:
        """Record the uses, and remove at most ``most`` of what is too old. Return what was removed."""
        since = self._clock() - self._unused_seconds
        uses = self._uses.last()
        gone = Aged()
        if self._unused_seconds and self._uses.recorded_since < since:
            plan = await asyncio.to_thread(self._choose, uses, since, most)
            gone = await self._remove(plan, since)
            self._uses.forget(uses, since)
        await self._writer.run(self._uses.write, self._uses.last())
        if gone:
            log.info(
                "removed what nobody asked for in %.0f days: %d plans, %d built chains, %d layer indexes",
                self._unused_seconds / 86400,
                len(gone.plans),
                len(gone.chains),
                len(gone.indexes),
            )
        return gone

    def _choose(self, uses: dict[str, float], since: float, most: int) -> Aged:
        chains = self._ingest.chains
        kept = Kept(
            plans=list(self._plans.chains()),
            chains=list(self._tables.built.keys()),
            indexes=list(self._tables.indexes.keys()),
        )
        in_use = chains_in_use(self._ingest.images.known(), uses, since)
        return aged(kept, in_use, chains.prefixes, lambda chain: chains.diff_ids(chain) or (), most)

    async def _remove(self, chosen: Aged, since: float) -> Aged:
        """Whatever is asked for while this goes on stays; what goes although it is wanted by then is made again."""
        layers, chains = self._ingest.layers, self._ingest.chains
        plans, built, indexes = [], [], []
        for chain in chosen.plans:
            if not self._uses.was_used(chain, since):
                await self._plans.drop(chain)
                plans.append(chain)
        for chain in chosen.chains:
            if not self._uses.was_used(chain, since) and not chains.is_building(chain):
                await chains.forget(chain)
                built.append(chain)
        begun_again = {diff_id for chain in {*chosen.plans, *chosen.chains} if self._uses.was_used(chain, since)
                       for diff_id in chains.diff_ids(chain) or ()}  # fmt: skip
        for diff_id in chosen.indexes:
            if diff_id not in begun_again and not layers.is_running(diff_id):
                await layers.forget_index(diff_id)
                indexes.append(diff_id)
        gone = Aged(tuple(plans), tuple(built), tuple(indexes))
        for kind, count in (("plan", len(plans)), ("chain", len(built)), ("index", len(indexes))):
            metrics.AGED_OUT.labels(kind).inc(count)
        return gone
