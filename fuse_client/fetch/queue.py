"""Which chunks to ask for next. Pure: no IO, no tasks; the caller brings the clock.

A chunk that is wanted and not yet here is one *flight*, however many want it:

    QUEUED ──take──▶ FLYING ──arrived──▶ gone
       ▲                │ the batch ended without it
       └──due, wake── PARKED

Lanes, in the order in which they are served: DEMAND (a reader waits), WINDOW (neighbours of a demand miss),
PLAN, BACKFILL. In a lane the chains take turns, batch by batch.

Invariants (``tests/unit/fuse_client/fetch/test_queue.py`` checks them after every step):

1. A chunk has at most one flight, and a flying one is in exactly one batch.
2. A flight with waiters never leaves but by ``arrived``, or by the last of them leaving.
3. At most ``connections`` batches fly, of these at most ``prefetch_connections`` of prefetch, which is less than
   ``connections`` unless there is only one: a demand finds a free connection, or all are busy with demand.
4. No prefetch batch starts while a demand is queued.
5. What is queued for prefetch is at most ``queue_bytes`` for each chain and lane.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from fastpull.cache.digest import ChunkId, Digest
from fastpull.cache.frames import MAX_IDS

PREFETCH_ATTEMPTS = 4  # a chunk that no reader waits for is given up after so many


class Lane(enum.IntEnum):
    DEMAND = 0
    WINDOW = 1
    PLAN = 2
    BACKFILL = 3


class Stage(enum.Enum):
    QUEUED = "queued"
    FLYING = "flying"
    PARKED = "parked"


class Want(NamedTuple):
    """A chunk to fetch and its uncompressed size."""

    chunk: ChunkId
    size: int


@dataclass(slots=True, eq=False)
class Flight:
    """A chunk on its way. Times are the caller's clock, 0 = not yet."""

    chunk: ChunkId
    size: int
    chain: Digest
    lane: Lane
    stage: Stage = Stage.QUEUED
    waiters: int = 0
    attempts: int = 0  # batches that ended without it
    started_at: float = 0.0
    due_at: float = 0.0  # while parked


@dataclass(slots=True, eq=False)
class Batch:
    """What one request asks for. ``flights`` holds those still to come, in the order of the request."""

    chain: Digest
    lane: Lane
    flights: dict[ChunkId, Flight] = field(default_factory=dict)
    size: int = 0

    @property
    def chunks(self) -> list[ChunkId]:
        return list(self.flights)

    @property
    def attempt(self) -> int:
        return max((flight.attempts for flight in self.flights.values()), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the scheduler keeps to. Bytes are uncompressed."""

    connections: int = 8
    prefetch_connections: int = 4
    batch_bytes: int = 1 << 20
    # Twice as much a request costs the node a fifth less processor time (64 KiB chunks: 190 MB for each core and
    # second, 150 with 1 MiB, 220 with 4 MiB), and a reader that joins one waits for at most so much more.
    prefetch_batch_bytes: int = 2 << 20
    queue_bytes: int = 16 << 20  # of one chain in one prefetch lane

    def __post_init__(self) -> None:
        # One connection is always kept for demand, whatever the settings say; with a single one in all,
        # a demand waits for at most the prefetch batch that is on it.
        most = max(1, self.connections - 1)
        object.__setattr__(self, "prefetch_connections", max(0, min(self.prefetch_connections, most)))


class _Queue:
    """One chain's flights in one lane, first in first out; any can be taken out."""

    __slots__ = ("bytes", "flights")

    def __init__(self) -> None:
        self.flights: dict[ChunkId, Flight] = {}
        self.bytes = 0

    def put(self, flight: Flight) -> None:
        self.flights[flight.chunk] = flight
        self.bytes += flight.size

    def take_out(self, flight: Flight) -> None:
        del self.flights[flight.chunk]
        self.bytes -= flight.size


class FetchQueue:
    """The scheduler of all chains of a node."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._flights: dict[ChunkId, Flight] = {}
        self._lanes: dict[Lane, dict[Digest, _Queue]] = {lane: {} for lane in Lane}
        self._parked: dict[ChunkId, Flight] = {}
        self._batches: set[Batch] = set()

    def __contains__(self, chunk: ChunkId) -> bool:
        return chunk in self._flights

    def __len__(self) -> int:
        return len(self._flights)

    @property
    def batches(self) -> frozenset[Batch]:
        return frozenset(self._batches)

    def flights(self) -> Iterator[Flight]:
        return iter(self._flights.values())

    # -- wanting -------------------------------------------------------------------------------------

    def demand(self, chain: Digest, wants: Iterable[Want], window: Iterable[Want] = ()) -> None:
        """One reader waits for each of ``wants``; ``window`` are neighbours worth taking along.

        The caller has seen that none of them is local. Each want counts one waiter, to be ended by
        ``arrived`` or ``leave``.
        """
        for want in wants:
            flight = self._flights.get(want.chunk)
            if flight is None:
                flight = self._flights[want.chunk] = Flight(want.chunk, want.size, chain, Lane.DEMAND)
                self._enqueue(flight)
            elif flight.lane is not Lane.DEMAND:
                self._upgrade(flight, chain)
            flight.waiters += 1
        for want in window:
            if want.chunk not in self._flights:
                if self.room(chain, Lane.WINDOW) < want.size:
                    break
                flight = self._flights[want.chunk] = Flight(want.chunk, want.size, chain, Lane.WINDOW)
                self._enqueue(flight)

    def offer(self, chain: Digest, lane: Lane, wants: Iterable[Want]) -> int:
        """Queue prefetch until the lane of this chain is full; return how many of ``wants`` are dealt with."""
        dealt = 0
        for want in wants:
            if want.chunk not in self._flights:
                if self.room(chain, lane) < want.size:
                    break
                flight = self._flights[want.chunk] = Flight(want.chunk, want.size, chain, lane)
                self._enqueue(flight)
            dealt += 1
        return dealt

    def room(self, chain: Digest, lane: Lane) -> int:
        """Bytes that may still be queued."""
        queue = self._lanes[lane].get(chain)
        return self.limits.queue_bytes - (queue.bytes if queue else 0)

    def leave(self, chunk: ChunkId) -> None:
        """One reader does not wait any more. What nobody waits for and is not on the wire is forgotten."""
        flight = self._flights.get(chunk)
        if flight is None:
            return
        flight.waiters -= 1
        if flight.waiters == 0 and flight.stage is not Stage.FLYING:
            self._forget(flight)

    def release(self, chain: Digest) -> None:
        """Forget what is queued for a chain and nobody waits for. What is on the wire arrives."""
        for flight in [f for f in self._flights.values() if f.chain == chain]:
            if flight.waiters == 0 and flight.stage is not Stage.FLYING:
                self._forget(flight)

    # -- fetching ------------------------------------------------------------------------------------

    def take(self, now: float, *, prefetch: bool = True) -> Batch | None:
        """The next batch to ask for, or None: nothing is queued, or no connection may be used for it."""
        self._unpark(now)
        if len(self._batches) >= self.limits.connections:
            return None
        if self._lanes[Lane.DEMAND]:
            return self._start(Lane.DEMAND, now)
        busy = sum(batch.lane is not Lane.DEMAND for batch in self._batches)
        if not prefetch or busy >= self.limits.prefetch_connections:
            return None
        for lane in (Lane.WINDOW, Lane.PLAN, Lane.BACKFILL):
            if self._lanes[lane]:
                return self._start(lane, now)
        return None

    def arrived(self, batch: Batch, chunk: ChunkId) -> Flight:
        """The chunk is here, verified. Its waiters are the caller's to wake."""
        flight = batch.flights.pop(chunk)
        del self._flights[chunk]
        return flight

    def ended(self, batch: Batch, retry_at: float) -> None:
        """The request is over, its connection free. What did not come is tried again at ``retry_at``,
        unless nobody waits for it any more, or it is prefetch that failed too often.
        """
        self._batches.remove(batch)
        for flight in batch.flights.values():
            flight.attempts += 1
            if flight.waiters == 0 and (flight.lane is Lane.DEMAND or flight.attempts >= PREFETCH_ATTEMPTS):
                del self._flights[flight.chunk]
                continue
            flight.stage = Stage.PARKED
            flight.due_at = retry_at
            self._parked[flight.chunk] = flight
        batch.flights.clear()

    def wake(self) -> None:
        """Try everything again that waits for a retry: a proxy is back."""
        for flight in self._parked.values():
            flight.due_at = 0.0

    def next_due(self) -> float | None:
        """When the next retry is due."""
        return min((flight.due_at for flight in self._parked.values()), default=None)

    # -- inside --------------------------------------------------------------------------------------

    def _enqueue(self, flight: Flight) -> None:
        flight.stage = Stage.QUEUED
        self._lanes[flight.lane].setdefault(flight.chain, _Queue()).put(flight)

    def _dequeue(self, flight: Flight) -> None:
        queues = self._lanes[flight.lane]
        queue = queues[flight.chain]
        queue.take_out(flight)
        if not queue.flights:
            del queues[flight.chain]

    def _upgrade(self, flight: Flight, chain: Digest) -> None:
        """A reader waits for what was prefetch: it goes to the demand lane, or is joined where it flies."""
        if flight.stage is Stage.QUEUED:
            self._dequeue(flight)
        elif flight.stage is Stage.PARKED:
            del self._parked[flight.chunk]
        flight.lane = Lane.DEMAND
        if flight.stage is not Stage.FLYING:
            flight.chain = chain
            self._enqueue(flight)

    def _forget(self, flight: Flight) -> None:
        if flight.stage is Stage.QUEUED:
            self._dequeue(flight)
        else:
            del self._parked[flight.chunk]
        del self._flights[flight.chunk]

    def _unpark(self, now: float) -> None:
        for flight in [f for f in self._parked.values() if f.due_at <= now]:
            del self._parked[flight.chunk]
            self._enqueue(flight)

    def _start(self, lane: Lane, now: float) -> Batch:
        queues = self._lanes[lane]
        chain = next(iter(queues))
        batch = Batch(chain, lane)
        self._fill(batch, lane, now)
        if lane is Lane.DEMAND:
            self._fill(batch, Lane.WINDOW, now)
        if chain in queues:  # its next turn comes after everybody else's
            queues[chain] = queues.pop(chain)
        self._batches.add(batch)
        return batch

    def _fill(self, batch: Batch, lane: Lane, now: float) -> None:
        limit = self.limits.batch_bytes if batch.lane is Lane.DEMAND else self.limits.prefetch_batch_bytes
        queue = self._lanes[lane].get(batch.chain)
        while queue is not None and queue.flights:
            flight = next(iter(queue.flights.values()))
            if batch.flights and (batch.size + flight.size > limit or len(batch.flights) >= MAX_IDS):
                break
            self._dequeue(flight)
            flight.stage = Stage.FLYING
            flight.started_at = now
            batch.flights[flight.chunk] = flight
            batch.size += flight.size
