"""What starts have taught: traces come in, plans go out."""

from __future__ import annotations

import logging

import msgspec

from fastpull.cache.digest import ChunkId
from fastpull.cache.errors import RecordDamagedError
from fastpull.cache.tables import Database
from fastpull.cache.wire import Plan, Trace
from fastpull.cache.writer import Writer
from fastpull.image.chunk_map import ChunkMap

log = logging.getLogger(__name__)

TABLES = ("plans", "traces")


class Plans:
    """Keeps one plan for each chain. A plan names only chunks that its chain holds."""

    def __init__(self, database: Database, writer: Writer) -> None:
        self._plans = database.table("plans", Plan)
        self._writer = writer

    def get(self, chain_id: str) -> Plan:
        """The chain's plan; an empty one where nothing is known."""
        try:
            return self._plans.get(chain_id) or Plan(chain_id=chain_id)
        except RecordDamagedError as exc:
            log.warning("%s: treated as absent", exc)
            return Plan(chain_id=chain_id)

    async def learn(self, trace: Trace, chunk_map: ChunkMap) -> Plan:
        """Merge one start into the plan of its chain."""
        known = self.get(trace.chain_id)
        merged = (*known.chunks, *(chunk for chunk in trace.chunks if chunk not in set(known.chunks)))
        plan = msgspec.structs.replace(known, chunks=merged, starts=known.starts + 1)
        return await self.put(trace.chain_id, plan, chunk_map)

    async def put(self, chain_id: str, plan: Plan, chunk_map: ChunkMap) -> Plan:
        """Replace the chain's plan by ``plan``, as far as the chain holds its chunks; return what is kept."""
        chunks = tuple(chunk for chunk in dict.fromkeys(plan.chunks) if _is_in(chunk, chunk_map))
        plan = msgspec.structs.replace(plan, chain_id=chain_id, chunks=chunks)
        await self._writer.run(self._plans.put, chain_id, plan)
        return plan

    async def drop(self, chain_id: str) -> int:
        """Forget what was learned of a chain; return how many chunks its plan had."""
        chunks = len(self.get(chain_id).chunks)
        await self._writer.run(self._plans.delete, chain_id)
        return chunks


def _is_in(chunk: str, chunk_map: ChunkMap) -> bool:
    try:
        return ChunkId(bytes.fromhex(chunk)) in chunk_map
    except ValueError:
        return False
