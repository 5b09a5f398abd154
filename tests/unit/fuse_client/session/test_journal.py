"""Open requests survive in shared memory."""

import os

import pytest
from fakes.kernel import request

from fastpull.fuse_client.session.journal import SLOTS, RequestJournal
from fastpull.fuse_client.session.protocol import Opcode


@pytest.fixture
def memory() -> int:
    return RequestJournal.create()


def journal_of(memory: int) -> RequestJournal:
    """As a daemon has it: its own map of memory that the keeper keeps."""
    return RequestJournal(os.dup(memory))


def receive(journal: RequestJournal, unique: int) -> bytes:
    """What the kernel does: it writes the request to where the next one belongs."""
    data = request(Opcode.STATFS, unique=unique)
    journal.buffer[: len(data)] = data
    return data


def test_what_was_left_open_is_found_by_the_next(memory: int) -> None:
    """Held requests, and the one that was just being looked at; not those that were answered."""
    journal = journal_of(memory)
    assert journal.begin(adopt=False) == []
    kept = []
    for unique in (2, 4, 6):
        kept.append(receive(journal, unique))
        journal.hold(unique)
    journal.release(4)
    kept[1] = receive(journal, 8)  # killed right after reading it

    found = journal_of(memory).begin(adopt=True)

    assert sorted(found) == sorted(kept)


def test_adopted_requests_stay_until_they_are_answered(memory: int) -> None:
    """However many daemons die over them."""
    journal = journal_of(memory)
    journal.begin(adopt=False)
    kept = receive(journal, 2)
    journal.hold(2)
    for _ in range(3):
        journal = journal_of(memory)
        assert journal.begin(adopt=True) == [kept]
        journal.hold(2)  # being held already, it takes no second slot
        receive(journal, 4)
        journal.hold(4)
        journal.release(4)

    journal.release(2)

    assert kept not in journal_of(memory).begin(adopt=True)


def test_a_kernel_that_sends_again_makes_the_journal_forget(memory: int) -> None:
    """Or the same request would be answered twice."""
    journal = journal_of(memory)
    journal.begin(adopt=False)
    receive(journal, 2)
    journal.hold(2)

    journal_of(memory).begin(adopt=False)

    assert journal_of(memory).begin(adopt=True) == []


def test_more_requests_than_slots_are_taken_all_the_same(memory: int) -> None:
    """Only unrecorded; and once one is answered there is room again."""
    journal = journal_of(memory)
    journal.begin(adopt=False)
    for unique in range(2, 2 * SLOTS + 10, 2):
        receive(journal, unique)
        journal.hold(unique)
    assert len(journal_of(memory).begin(adopt=True)) == SLOTS

    journal.release(2)
    late = receive(journal, 9999)
    journal.hold(9999)

    assert late in journal_of(memory).begin(adopt=True)


def test_memory_that_nobody_touches_costs_nothing(memory: int) -> None:
    """Eight MiB for the worst case, of which a quiet daemon uses a page."""
    journal_of(memory).begin(adopt=False)
    journal_of(memory).begin(adopt=True)

    assert os.fstat(memory).st_blocks * 512 <= 2 * 8192


@pytest.mark.parametrize("garbage", [b"\xff" * 100, b"\x01\x00\x00\x00", b"\x00\x20\x00\x01" + bytes(50)])
def test_garbage_is_survived(memory: int, garbage: bytes) -> None:
    """The parser looks at what is found; here nothing may break."""
    os.pwrite(memory, garbage, 8192)

    for found in journal_of(memory).begin(adopt=True):
        assert len(found) <= 8192
