"""When each chain was last asked for: in memory at each request, on the disk once an hour.

Table ``uses``: key chainID, value the Unix time of the last use; under ``RECORDED_SINCE`` the time since which uses
are recorded, so that what an earlier version left behind counts as used then. What a killed proxy has not written
is at most an hour and a round of the housekeeping old, which does not matter beside limits of days.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable

from fastpull.cache.errors import RecordDamagedError
from fastpull.cache.tables import Database

log = logging.getLogger(__name__)

TABLES = ("uses",)
RECORDED_SINCE = "recorded since"
_GRAIN_SECONDS = 3600.0


class ChainUses:
    """One float for each chain that was used within the limit."""

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._table = database.table("uses", float)
        self._clock = clock
        self._uses: dict[str, float] = {}

        def skip(exc: RecordDamagedError) -> None:
            log.warning("%s: the chain counts as used now", exc)
            self._uses[exc.key] = clock()

        self._written = dict(self._table.items(on_damage=skip))
        self._uses = {**self._written, **self._uses}
        self.recorded_since = self._uses.pop(RECORDED_SINCE, clock())

    def note(self, chain_id: str) -> None:
        """The chain is used now. Costs a store to a dict; call it from the event loop."""
        self._uses[chain_id] = self._clock()

    def has(self, chain_id: str) -> bool:
        return chain_id in self._uses

    def last(self) -> dict[str, float]:
        """A copy; call it from the event loop."""
        return dict(self._uses)

    def was_used(self, chain_id: str, since: float) -> bool:
        return self._uses.get(chain_id, 0.0) >= since

    def forget(self, chains: Iterable[str], before: float) -> None:
        """Drop what is older than ``before``; call it from the event loop, ``write`` makes it durable."""
        for chain in chains:
            if self._uses.get(chain, before) < before:
                del self._uses[chain]

    def write(self, uses: dict[str, float]) -> None:
        """Make the table what ``last`` gave, in one transaction, but for what changed by less than an hour. Blocks."""
        wanted = {**uses, RECORDED_SINCE: self.recorded_since}
        changed = {
            key: at
            for key, at in wanted.items()
            if key not in self._written or abs(at - self._written[key]) >= _GRAIN_SECONDS
        }
        gone = self._written.keys() - wanted.keys()
        if not changed and not gone:
            return
        with self._database.write():
            for key, at in changed.items():
                self._table.put(key, at)
            for key in gone:
                self._table.delete(key)
        self._written = {**{key: at for key, at in self._written.items() if key not in gone}, **changed}
