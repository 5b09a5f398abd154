"""The scheduler, by rules: whatever is asked for, arrives, fails or is given up, its invariants hold."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fastpull.cache.digest import ChunkId, Digest
from fastpull.cache.frames import MAX_IDS
from fastpull.fuse_client.fetch.queue import PREFETCH_ATTEMPTS, Batch, FetchQueue, Lane, Limits, Stage, Want

CHAINS = [Digest(f"{n:064x}") for n in range(3)]
LIMITS = Limits(connections=3, prefetch_connections=2, batch_bytes=1000, prefetch_batch_bytes=1000, queue_bytes=2500)


def chunk(number: int) -> ChunkId:
    return ChunkId(number.to_bytes(32, "big"))


def want(number: int, size: int = 100) -> Want:
    return Want(chunk(number), size)


def wants(*numbers: int, size: int = 100) -> list[Want]:
    return [want(n, size) for n in numbers]


def take(queue: FetchQueue, now: float = 1.0) -> Batch:
    batch = queue.take(now)
    assert batch is not None
    return batch


class Scheduling(RuleBasedStateMachine):
    """Readers, prefetchers, a wire that delivers or breaks, and time."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = FetchQueue(LIMITS)
        self.now = 0.0
        self.waiting: Counter[ChunkId] = Counter()
        self.live: list[Batch] = []

    chains = st.sampled_from(CHAINS)
    numbers = st.lists(st.integers(0, 60), min_size=1, max_size=12, unique=True)

    @rule(chain=chains, numbers=numbers, window=numbers)
    def demand(self, chain: Digest, numbers: list[int], window: list[int]) -> None:
        self.queue.demand(chain, [want(n, 40 + n * 7) for n in numbers], [want(n, 40 + n * 7) for n in window])
        self.waiting.update(chunk(n) for n in numbers)

    @rule(chain=chains, numbers=numbers, lane=st.sampled_from([Lane.PLAN, Lane.BACKFILL]))
    def offer(self, chain: Digest, numbers: list[int], lane: Lane) -> None:
        asked = [want(n, 40 + n * 7) for n in numbers]
        dealt = self.queue.offer(chain, lane, asked)
        assert all(w.chunk in self.queue for w in asked[:dealt])

    @rule(prefetch=st.booleans())
    def take(self, prefetch: bool) -> None:
        demand = any(f.stage is Stage.QUEUED and f.lane is Lane.DEMAND for f in self.queue.flights())
        batch = self.queue.take(self.now, prefetch=prefetch)
        if batch is None:
            return
        self.live.append(batch)
        assert batch.flights, "a request asks for something"
        assert len({f.chunk for f in batch.flights.values()}) == len(batch.flights)
        if demand:
            assert batch.lane is Lane.DEMAND, "prefetch started while a reader waited in the queue"
        if batch.lane is not Lane.DEMAND:
            assert prefetch

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        batch = data.draw(st.sampled_from(self.live))
        if not batch.flights:
            return
        arrived = data.draw(st.sampled_from(batch.chunks))
        flight = self.queue.arrived(batch, arrived)
        assert flight.waiters == self.waiting.pop(arrived, 0), "every waiter is answered, none twice"

    @precondition(lambda self: self.live)
    @rule(data=st.data(), retry_in=st.integers(0, 3))
    def end(self, data: st.DataObject, retry_in: int) -> None:
        batch = data.draw(st.sampled_from(self.live))
        self.live.remove(batch)
        self.queue.ended(batch, self.now + retry_in)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        leaving = data.draw(st.sampled_from(sorted(self.waiting)))
        self.waiting[leaving] -= 1
        self.waiting += Counter()  # drops zeros
        self.queue.leave(leaving)

    @rule(chain=chains)
    def release(self, chain: Digest) -> None:
        self.queue.release(chain)

    @rule(seconds=st.integers(1, 3))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @rule()
    def wake(self) -> None:
        self.queue.wake()

    @invariant()
    def a_chunk_flies_once(self) -> None:
        flying = Counter(c for batch in self.queue.batches for c in batch.flights)
        assert all(count == 1 for count in flying.values())
        assert set(flying) == {f.chunk for f in self.queue.flights() if f.stage is Stage.FLYING}

    @invariant()
    def who_is_waited_for_is_known(self) -> None:
        assert {f.chunk: f.waiters for f in self.queue.flights() if f.waiters} == dict(self.waiting)

    @invariant()
    def connections_are_kept_for_demand(self) -> None:
        batches = self.queue.batches
        assert len(batches) <= LIMITS.connections
        assert sum(b.lane is not Lane.DEMAND for b in batches) <= LIMITS.prefetch_connections < LIMITS.connections

    @invariant()
    def prefetch_is_bounded(self) -> None:
        queued: Counter[tuple[Lane, Digest]] = Counter()
        for flight in self.queue.flights():
            if flight.stage is Stage.QUEUED and flight.lane is not Lane.DEMAND and not flight.attempts:
                queued[flight.lane, flight.chain] += flight.size
        assert all(total <= LIMITS.queue_bytes for total in queued.values())

    def teardown(self) -> None:
        """Once nothing fails any more, everybody who still waits is answered."""
        for _ in range(500):
            self.now += 10
            while self.queue.take(self.now) is not None:
                pass
            for batch in self.queue.batches:
                for arrived in batch.chunks:
                    assert self.queue.arrived(batch, arrived).waiters == self.waiting.pop(arrived, 0)
                self.queue.ended(batch, self.now)
            if not len(self.queue):
                break
        assert not self.waiting
        assert len(self.queue) == 0


Scheduling.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestScheduling = Scheduling.TestCase


def test_a_demand_overtakes_all_prefetch() -> None:
    """However much is planned, the next request is the reader's."""
    queue = FetchQueue(LIMITS)
    queue.offer(CHAINS[0], Lane.PLAN, wants(*range(20)))
    queue.offer(CHAINS[1], Lane.BACKFILL, wants(*range(30, 50)))
    queue.demand(CHAINS[2], wants(99))

    assert take(queue).chunks == [chunk(99)]


def test_a_demand_finds_a_connection_while_prefetch_has_all_it_may() -> None:
    """Prefetch never holds the last connection."""
    queue = FetchQueue(
        Limits(connections=3, prefetch_connections=99, batch_bytes=1000, prefetch_batch_bytes=1000, queue_bytes=100_000)
    )
    queue.offer(CHAINS[0], Lane.PLAN, wants(*range(100)))
    assert take(queue).lane is Lane.PLAN
    assert take(queue).lane is Lane.PLAN
    assert queue.take(1.0) is None

    queue.demand(CHAINS[1], wants(500))

    assert take(queue).chunks == [chunk(500)]


def test_with_one_connection_a_demand_waits_for_one_batch() -> None:
    """A single connection is shared: a batch of prefetch under way ends, then the reader is next."""
    queue = FetchQueue(
        Limits(connections=1, prefetch_connections=1, batch_bytes=300, prefetch_batch_bytes=300, queue_bytes=10_000)
    )
    queue.offer(CHAINS[0], Lane.PLAN, wants(*range(30)))
    prefetch = take(queue)
    queue.demand(CHAINS[0], wants(99))
    assert queue.take(1.0) is None

    queue.ended(prefetch, retry_at=100.0)

    assert take(queue).chunks == [chunk(99)]


def test_a_demand_joins_the_request_that_is_under_way() -> None:
    """No chunk is asked for twice."""
    queue = FetchQueue(LIMITS)
    queue.offer(CHAINS[0], Lane.PLAN, wants(1, 2, 3))
    batch = take(queue)

    queue.demand(CHAINS[1], wants(2))

    assert queue.take(1.0) is None
    assert queue.arrived(batch, chunk(2)).waiters == 1


def test_a_demand_takes_its_chunk_out_of_the_plan() -> None:
    """What was planned and not yet asked for is asked for now, once."""
    queue = FetchQueue(LIMITS)
    queue.offer(CHAINS[0], Lane.PLAN, wants(1, 2, 3))
    queue.demand(CHAINS[1], wants(3))

    assert take(queue).chunks == [chunk(3)]
    assert take(queue).chunks == [chunk(1), chunk(2)]


def test_neighbours_ride_with_the_miss_behind_it() -> None:
    """The window fills up the demand's own batch; what does not fit comes as prefetch."""
    queue = FetchQueue(LIMITS)
    queue.demand(CHAINS[0], wants(50), window=wants(*range(40, 50), *range(51, 56)))

    first = take(queue)
    second = take(queue)

    assert first.chunks == [chunk(50), *(chunk(n) for n in range(40, 49))]
    assert (second.lane, second.chunks) == (Lane.WINDOW, [chunk(49), *(chunk(n) for n in range(51, 56))])


@pytest.mark.parametrize("lane", [Lane.DEMAND, Lane.PLAN, Lane.BACKFILL])
def test_chains_take_turns(lane: Lane) -> None:
    """Three chains with much to fetch each get every third batch, whoever came first."""
    queue = FetchQueue(
        Limits(connections=100, prefetch_connections=50, batch_bytes=200, prefetch_batch_bytes=200, queue_bytes=10_000)
    )
    for at, chain in enumerate(CHAINS):
        several = wants(*range(at * 100, at * 100 + 12))
        if lane is Lane.DEMAND:
            queue.demand(chain, several)
        else:
            queue.offer(chain, lane, several)

    served = [take(queue).chain for _ in range(18)]

    assert served == CHAINS * 6


def test_what_did_not_come_is_asked_for_again_when_it_is_due() -> None:
    """A cut request is resumed with the chunks that are missing, and with those only."""
    queue = FetchQueue(LIMITS)
    queue.demand(CHAINS[0], wants(1, 2, 3))
    batch = take(queue)
    queue.arrived(batch, chunk(1))
    queue.ended(batch, retry_at=5.0)

    assert queue.next_due() == 5.0
    assert queue.take(4.9) is None
    again = take(queue, now=5.0)
    assert (again.chunks, again.attempt) == ([chunk(2), chunk(3)], 1)


def test_a_proxy_that_is_back_ends_all_waiting() -> None:
    """Nobody sits out a backoff once the reason for it is gone."""
    queue = FetchQueue(LIMITS)
    queue.demand(CHAINS[0], wants(1))
    queue.ended(take(queue), retry_at=60.0)
    queue.wake()

    assert take(queue, now=2.0).chunks == [chunk(1)]


def test_prefetch_that_keeps_failing_is_given_up() -> None:
    """A chunk that nobody waits for is not asked for without end."""
    queue = FetchQueue(LIMITS)
    queue.offer(CHAINS[0], Lane.PLAN, wants(1))
    for attempt in range(PREFETCH_ATTEMPTS):
        queue.ended(take(queue, now=float(attempt)), retry_at=float(attempt))

    assert len(queue) == 0


def test_a_request_never_holds_more_ids_than_the_proxy_takes() -> None:
    """Tiny chunks fill a request by their number, not by their bytes."""
    queue = FetchQueue(Limits(batch_bytes=1, prefetch_batch_bytes=1 << 20, queue_bytes=1 << 20))
    queue.offer(CHAINS[0], Lane.PLAN, [want(n, 1) for n in range(MAX_IDS + 10)])

    assert len(take(queue).chunks) == MAX_IDS
