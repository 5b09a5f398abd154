"""What starts have taught: traces come in, plans go out (``image/plan.py`` decides, this keeps and serialises)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from fastpull.cache.errors import CacheError
from fastpull.cache.single_flight import SingleFlight
from fastpull.cache.tables import Database
from fastpull.cache.tasks import Tasks
from fastpull.cache.wire import Plan, Trace
from fastpull.cache.writer import Writer
from fastpull.image.chunk_map import ChunkMap
from fastpull.image.counterparts import Counterparts
from fastpull.image.erofs.reader import Bootstrap
from fastpull.image.errors import IndexFormatError
from fastpull.image.plan import Candidate, LearnedPlan, inherit, merge, with_counterparts

log = logging.getLogger(__name__)

TABLES = ("plans",)

_MOST_RELATIVES = 8  # plans of the same repository that are compared, the latest images first
_MOST_STRANGERS = 24  # of other repositories; each costs some 10 us for each of its chunks


class BuiltChains(Protocol):
    """The part of ``Chains`` that is needed here."""

    async def chunk_map(self, chain_id: str) -> ChunkMap: ...

    async def bootstrap(self, chain_id: str) -> bytes: ...

    def built(self, chain_id: str) -> object | None: ...


class Plans:
    """Keeps one plan for each chain. A plan names only chunks that its chain holds.

    Merging is done one trace after another, in a thread: a trace of 5,000 chunks takes some 50 ms.
    """

    def __init__(
        self,
        database: Database,
        writer: Writer,
        tasks: Tasks,
        chains: BuiltChains,
        repositories: Callable[[], Iterable[tuple[str, str]]],
    ) -> None:
        """``repositories`` gives chainID and repository of every known image, the latest first; it may block."""
        self._plans = database.table("plans", LearnedPlan)
        self._writer = writer
        self._chains = chains
        self._repositories = repositories
        self._merging = asyncio.Lock()
        self._inheriting: SingleFlight[str, LearnedPlan] = SingleFlight(tasks)

    async def get(self, chain_id: str) -> Plan:
        """The chain's plan: learned, else inherited from the most similar chain, else empty.

        What is inherited is kept, so that it is looked for once, as long as it is not empty.
        """
        learned = self._stored(chain_id)
        if learned is None:
            learned = await self._inheriting.get(chain_id, lambda: self._inherit(chain_id))
        return learned.plan()

    async def learn(self, trace: Trace) -> Plan:
        """Merge one start into the plan of its chain. Raise as ``BuiltChains`` for a chain that is not here."""
        await self.get(trace.chain_id)  # the first start goes on top of what is inherited
        chunks = await self._chains.chunk_map(trace.chain_id)
        async with self._merging:
            previous = self._stored(trace.chain_id)
            learned = await asyncio.to_thread(_merge, trace, previous, chunks)
            await self._writer.run(self._plans.put, trace.chain_id, learned)
        return learned.plan()

    async def put(self, chain_id: str, plan: Plan) -> Plan:
        """Replace the chain's plan by ``plan``, as far as the chain holds its chunks; return what is kept."""
        chunks = await self._chains.chunk_map(chain_id)
        named = Plan(chain_id=chain_id, chunks=plan.chunks, starts=plan.starts, inherited_from=plan.inherited_from)
        async with self._merging:
            learned = await asyncio.to_thread(LearnedPlan.of, named, chunks)
            await self._writer.run(self._plans.put, chain_id, learned)
        return learned.plan()

    async def drop(self, chain_id: str) -> int:
        """Forget what was learned of a chain; return how many chunks its plan had."""
        async with self._merging:
            learned = self._stored(chain_id)
            await self._writer.run(self._plans.delete, chain_id)
        return 0 if learned is None else len(learned)

    def chains(self) -> Iterator[str]:
        """The chains that have a plan. Reads the whole table: call from a thread."""
        return self._plans.keys()

    async def _inherit(self, chain_id: str) -> LearnedPlan:
        nothing = LearnedPlan(chain_id=chain_id)
        if not self._plans.count():
            return nothing
        chunks = await self._chains.chunk_map(chain_id)
        learned = await asyncio.to_thread(self._best, chain_id, chunks)
        if learned is None:
            return nothing
        learned = await self._with_changed_files(learned, chunks)
        async with self._merging:
            if (meanwhile := self._stored(chain_id)) is not None:
                return meanwhile
            await self._writer.run(self._plans.put, chain_id, learned)
        log.info("chain %s: a plan of %d chunks inherited from %s", chain_id, len(learned), learned.inherited_from)
        return learned

    async def _with_changed_files(self, learned: LearnedPlan, chunks: ChunkMap) -> LearnedPlan:
        """For files that have changed since, what stands in them where the older image was read."""
        origin = self._stored(learned.inherited_from)
        if origin is None or len(learned) == len(origin) or self._chains.built(origin.chain_id) is None:
            return learned
        try:
            older_chunks = await self._chains.chunk_map(origin.chain_id)
            older = await self._chains.bootstrap(origin.chain_id)
            newer = await self._chains.bootstrap(learned.chain_id)
            return await asyncio.to_thread(_followed, learned, origin, older, older_chunks, newer, chunks)
        except Exception as exc:  # noqa: BLE001 - whatever the older chain suffers from, the plan is good without
            log.warning(
                "chain %s: what has changed since %s is not planned: %s", learned.chain_id, origin.chain_id, exc
            )
            return learned

    def _best(self, chain_id: str, chunks: ChunkMap) -> LearnedPlan | None:
        repositories = list(self._repositories())
        own = next((repository for chain, repository in repositories if chain == chain_id), "")
        relatives: list[Candidate] = []
        strangers: list[Candidate] = []
        for chain, repository in dict.fromkeys(repositories):
            group, most = (relatives, _MOST_RELATIVES) if repository == own else (strangers, _MOST_STRANGERS)
            if chain == chain_id or len(group) >= most:
                continue
            learned = self._stored(chain)
            if learned is not None and learned.starts:  # what is inherited itself says nothing of its own
                group.append(Candidate(learned, repository))
        return inherit([*relatives, *strangers], chain_id=chain_id, repository=own, chunks=chunks)

    def _stored(self, chain_id: str) -> LearnedPlan | None:
        try:
            return self._plans.get(chain_id)
        except CacheError as exc:
            log.warning("the plan of chain %s is damaged and learned anew: %s", chain_id, exc)
            return None


def _followed(
    learned: LearnedPlan, origin: LearnedPlan, older: bytes, older_chunks: ChunkMap, newer: bytes, chunks: ChunkMap
) -> LearnedPlan:
    with Bootstrap.open(older) as older_tree, Bootstrap.open(newer) as newer_tree:
        counterparts = Counterparts(older_tree, older_chunks, newer_tree, chunks)
        return with_counterparts(learned, origin, counterparts.of, chunks=chunks)


def _merge(trace: Trace, previous: LearnedPlan | None, chunks: ChunkMap) -> LearnedPlan:
    try:
        return merge([trace], previous, chain_id=trace.chain_id, chunks=chunks)
    except IndexFormatError as exc:  # of another version
        log.warning("the plan of chain %s is learned anew: %s", trace.chain_id, exc)
        return merge([trace], None, chain_id=trace.chain_id, chunks=chunks)
