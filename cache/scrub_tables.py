"""Scrubbing a table: every value against its checksum, and against whatever else is known of its kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Generic, TypeVar

from fastpull.cache.errors import RecordDamagedError, RecordForeignError
from fastpull.cache.scrub import STEP_BYTES, Damage, Step
from fastpull.cache.tables import Database, Table
from fastpull.cache.writer import Writer

T = TypeVar("T")

_MOST_RECORDS = 256  # in a step


class TableCheck(Generic[T]):
    """``Check`` over one table.

    ``verify`` gets key and value, returns how many bytes it looked at, and raises ``RecordDamagedError``, or
    ``RecordForeignError`` for what only another version can read. ``drop`` removes a key and all that stands on it;
    by default the record alone.
    """

    def __init__(
        self,
        kind: str,
        database: Database,
        table: Table[T],
        writer: Writer,
        *,
        verify: Callable[[str, T], int] = lambda _key, _value: 0,
        drop: Callable[[str], Awaitable[object]] | None = None,
    ) -> None:
        self.kind = kind
        self._database = database
        self._table = table
        self._writer = writer
        self._verify = verify
        self._drop = drop

    def total(self) -> int:
        return self._table.count()

    def steps(self) -> Iterator[Step]:
        size = checked = 0
        damaged: list[Damage] = []
        unchecked: list[str] = []
        for key in self._table.keys():  # noqa: SIM118 - a table is no mapping
            checked += 1
            try:
                size += self._look(key)
            except RecordForeignError as exc:
                unchecked.append(f"{exc}: left alone")
            except RecordDamagedError as exc:
                damaged.append(Damage(key, str(exc)))
            if size >= STEP_BYTES or checked >= _MOST_RECORDS:
                yield Step(size, checked, tuple(damaged), tuple(unchecked))
                size = checked = 0
                damaged, unchecked = [], []
        yield Step(size, checked, tuple(damaged), tuple(unchecked))

    async def drop(self, damage: Damage) -> bool:
        if self._drop is None:
            return await self._writer.run(self._drop_damaged, damage.key)
        await self._drop(damage.key)
        return True

    def _look(self, key: str) -> int:
        value = self._table.get(key)
        return 0 if value is None else self._verify(key, value)

    def _drop_damaged(self, key: str) -> bool:
        """Unless somebody has put a right one meanwhile."""
        with self._database.write():
            try:
                self._look(key)
            except RecordForeignError:
                return False
            except RecordDamagedError:
                self._table.delete(key)
        return True
