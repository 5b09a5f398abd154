"""Scrubbing: check everything that a store holds, at a set rate, while it is in use.

A ``Check`` walks one kind of things in small blocking steps and says which are damaged. ``Scrub`` takes the steps one
after another, keeps the pace, has what is damaged dropped by its owner, so that it is fetched or made again, and
tells how far it is. What only another version can read is left alone, and said.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from fastpull.cache.errors import CacheError
from fastpull.cache.tasks import Tasks
from fastpull.cache.wire import Message
from fastpull.config.errors import ConfigError
from fastpull.config.units import ByteSize

log = logging.getLogger(__name__)

DEFAULT_RATE = "100MB/s"
STEP_BYTES = 1 << 20  # of a step, about: what cancelling waits for, and how even the pace is
_MOST_NOTES = 50
_MOST_CREDIT_SECONDS = 1.0


def rate_of(text: str) -> int:
    """``100MB/s``, ``1GiB``, ``0`` (as fast as it goes) → bytes a second. Raise ``ConfigError``."""
    try:
        return int(ByteSize.parse(text.removesuffix("/s")))
    except ConfigError as exc:
        raise ConfigError(f"{text!r} is no rate; write for example 100MB/s, or 0 for as fast as it goes") from exc


class ScrubKind(Message, frozen=True, kw_only=True):
    """How one kind of things is."""

    kind: str
    total: int = 0  # things, as counted at the start; others come and go meanwhile
    checked: int = 0
    bytes: int = 0
    damaged: int = 0
    dropped: int = 0  # of the damaged ones
    unchecked: int = 0  # of another version, or unreadable


class ScrubState(Message, frozen=True, kw_only=True):
    """One line of the answer to ``POST /v1/scrub`` (proxy) and ``POST /scrub`` (node's control socket)."""

    stage: Literal["running", "done"]
    kinds: tuple[ScrubKind, ...]
    seconds: float
    notes: tuple[str, ...] = ()  # the first things that were found

    @property
    def is_clean(self) -> bool:
        """Everything was checked, and what was damaged is gone."""
        return all(kind.unchecked == 0 and kind.damaged == kind.dropped for kind in self.kinds)


@dataclass(frozen=True, slots=True)
class Damage:
    """A thing whose bytes are not what was written. ``key`` is what its check knows it by."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Step:
    """What a piece of the work has found."""

    bytes: int = 0
    checked: int = 0
    damaged: tuple[Damage, ...] = ()
    unchecked: tuple[str, ...] = ()  # why, for each thing that could not be checked


class Check(Protocol):
    """One kind of things."""

    @property
    def kind(self) -> str: ...

    def total(self) -> int:
        """How many there are, about. Blocks."""
        ...

    def steps(self) -> Iterator[Step]:
        """Check all of them, a piece of at most some MiB at a time. Blocks; holds nothing open between two steps.

        Raise ``CacheError`` or ``OSError`` where the rest can not be checked.
        """
        ...

    async def drop(self, damage: Damage) -> bool:
        """Remove a damaged thing, if it still is; return whether it is gone or right now."""
        ...


class Pace:
    """Keeps an average of ``rate`` bytes a second. Time that was not used up is forgotten after a second. Pure."""

    def __init__(self, rate: int, now: float) -> None:
        self._rate = rate
        self._due = now

    def pause(self, count: int, now: float) -> float:
        """Seconds to wait after ``count`` bytes more."""
        if not self._rate:
            return 0.0
        self._due = max(self._due, now - _MOST_CREDIT_SECONDS) + count / self._rate
        return max(0.0, self._due - now)


@dataclass(slots=True)
class _Figures:
    total: int = 0
    checked: int = 0
    bytes: int = 0
    damaged: int = 0
    dropped: int = 0
    unchecked: int = 0


@dataclass(slots=True)
class Scrub:
    """One run over all checks. ``rate`` in bytes a second, 0 = as fast as it goes."""

    checks: Sequence[Check]
    rate: int = 0
    clock: Callable[[], float] = time.monotonic
    _kinds: dict[str, _Figures] = field(default_factory=dict)
    _notes: list[str] = field(default_factory=list)
    _started: float = 0.0
    _ended: float | None = None

    async def run(self) -> None:
        """Check everything. A kind that can not be read to its end does not keep the others from being checked."""
        self._started = self.clock()
        pace = Pace(self.rate, self._started)
        for check in self.checks:
            self._kinds[check.kind] = _Figures()
        for check in self.checks:
            with contextlib.suppress(CacheError, OSError):
                self._kinds[check.kind].total = await asyncio.to_thread(check.total)
        for check in self.checks:
            try:
                await self._run(check, pace)
            except (CacheError, OSError) as exc:
                self._kinds[check.kind].unchecked += 1
                self._note(f"{check.kind}: not checked to the end: {exc}")
        self._ended = self.clock()

    def state(self) -> ScrubState:
        """How far it is."""
        now = self._ended if self._ended is not None else self.clock()
        return ScrubState(
            stage="running" if self._ended is None else "done",
            kinds=tuple(
                ScrubKind(
                    kind=kind,
                    total=max(figures.total, figures.checked),
                    checked=figures.checked,
                    bytes=figures.bytes,
                    damaged=figures.damaged,
                    dropped=figures.dropped,
                    unchecked=figures.unchecked,
                )
                for kind, figures in self._kinds.items()
            ),
            seconds=round(now - self._started, 3) if self._started else 0.0,
            notes=tuple(self._notes),
        )

    async def _run(self, check: Check, pace: Pace) -> None:
        figures = self._kinds[check.kind]
        steps = check.steps()
        while (step := await asyncio.to_thread(next, steps, None)) is not None:
            figures.bytes += step.bytes
            figures.checked += step.checked
            figures.unchecked += len(step.unchecked)
            for reason in step.unchecked:
                self._note(f"{check.kind}: {reason}")
            for damage in step.damaged:
                figures.damaged += 1
                await self._drop(check, damage, figures)
            await asyncio.sleep(pace.pause(step.bytes, self.clock()))

    async def _drop(self, check: Check, damage: Damage, figures: _Figures) -> None:
        try:
            dropped = await check.drop(damage)
            outcome = "dropped" if dropped else "still there"
        except Exception as exc:  # noqa: BLE001 - whatever its owner meets, the rest is still to be checked
            dropped, outcome = False, f"can not be dropped: {exc}"
        figures.dropped += dropped
        log.warning("scrub: %s: %s: %s", check.kind, damage.reason, outcome)
        self._note(f"{check.kind}: {damage.reason}: {outcome}")

    def _note(self, text: str) -> None:
        if len(self._notes) < _MOST_NOTES:
            self._notes.append(text)


class ScrubRunningError(Exception):
    """One is running already; two would only take the disk from each other."""

    remedy = "wait for its end"

    def __init__(self) -> None:
        super().__init__("a scrub is running already")


class Scrubs:
    """Starts scrubs, one at a time."""

    def __init__(self, checks: Sequence[Check]) -> None:
        self._checks = checks
        self._running: asyncio.Task[None] | None = None
        self._is_stopped = False

    def stop(self) -> None:
        """The process is about to end: what runs breaks off, and nothing begins any more."""
        self._is_stopped = True
        if self._running is not None:
            self._running.cancel()

    async def states(self, rate: int, *, every: float = 0.5) -> AsyncGenerator[ScrubState, None]:
        """Scrub, and yield how far it is every so many seconds; the last state is ``done``, unless ``stop`` was called.

        Who closes the iterator ends the scrub. Raise ``ScrubRunningError``.
        """
        if self._running is not None:
            raise ScrubRunningError
        tasks = Tasks()
        scrub = Scrub(self._checks, rate)
        task = self._running = tasks.spawn(scrub.run(), name="scrub")
        try:
            yield scrub.state()
            while not self._is_stopped:
                await asyncio.wait([task], timeout=every)
                if task.cancelled():
                    return
                has_ended = task.done()  # not asked again: it may end while whoever iterates has the state
                if has_ended:
                    task.result()
                yield scrub.state()
                if has_ended:
                    return
        finally:
            self._running = None
            await tasks.aclose()
