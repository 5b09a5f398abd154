"""The store on disk does what the store in memory does, whatever is asked of them in whatever order."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from conformance.stores import Clock, make_store, packed
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fastpull.cache.digest import ChunkId
from fastpull.cache.index_change import USE_GRAIN_SECONDS

QUOTA = 60_000
CHUNKS = [packed(number, 200 + 700 * number) for number in range(24)]
one_number = st.integers(0, len(CHUNKS) - 1)
some_numbers = st.lists(one_number, max_size=5)


class TwoStores(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="stores-agree-"))
        self.clock = Clock()
        self.disk = make_store("disk-not-durable", self.directory, QUOTA, self.clock)
        self.memory = make_store("memory", self.directory, QUOTA, self.clock)

    def teardown(self) -> None:
        self.disk.close()
        shutil.rmtree(self.directory)

    @rule(numbers=some_numbers)
    def put(self, numbers: list[int]) -> None:
        chunks = [CHUNKS[number] for number in numbers]
        self.clock.advance(2 * USE_GRAIN_SECONDS)  # less, and the disk would not record a use that memory does
        assert self.memory.put_many(chunks) == self.disk.put_many(chunks)

    @rule(number=one_number)
    def touch(self, number: int) -> None:
        self.clock.advance(2 * USE_GRAIN_SECONDS)
        for store in (self.memory, self.disk):
            store.touch([CHUNKS[number][0]])
            store.flush()

    @rule(numbers=some_numbers)
    def drop(self, numbers: list[int]) -> None:
        names = [CHUNKS[number][0] for number in numbers]
        assert self.memory.drop(names) == self.disk.drop(names)

    @rule(left=st.integers(0, QUOTA))
    def evict(self, left: int) -> None:
        def nothing(_chunk: ChunkId) -> bool:
            return False

        assert self.memory.evict(left, in_use=nothing) == self.disk.evict(left, in_use=nothing)

    @rule()
    def reopen(self) -> None:
        self.disk.sync()
        self.disk.close()
        self.disk = make_store("disk-not-durable", self.directory, QUOTA, self.clock)

    @invariant()
    def same_chunks(self) -> None:
        assert set(self.memory.ids()) == set(self.disk.ids())
        with self.disk.view() as view:
            for name, stored in CHUNKS:
                found = view.get(name)
                assert found is None or stored.data == bytes(found.data)
                del found

    @invariant()
    def same_accounts(self) -> None:
        memory, disk = self.memory.stats(), self.disk.stats()
        assert (memory.chunks, memory.live_bytes) == (disk.chunks, disk.live_bytes)


TestTwoStores = TwoStores.TestCase
TestTwoStores.settings = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking opens hundreds of stores
)
