"""Threads of a crew hand items on in order, and stop together."""

import threading

import pytest

from fastpull.proxy.ingest.crew import Channel, Crew, StoppedError

TIMEOUT = 60


def test_items_pass_in_order_to_the_end() -> None:
    crew = Crew()
    channel: Channel[int] = Channel(crew, 2)
    got: list[int] = []

    def give() -> None:
        for number in range(500):
            channel.put(number)
        channel.close()

    crew.spawn(give, name="give")
    crew.spawn(lambda: got.extend(channel), name="take")
    crew.join()
    assert got == list(range(500))


def test_several_takers_share_the_items_of_several_givers() -> None:
    crew = Crew()
    channel: Channel[int] = Channel(crew, 1, givers=3)
    got: list[int] = []

    def give(first: int) -> None:
        for number in range(first, first + 100):
            channel.put(number)
        channel.close()

    for first in (0, 100, 200):
        crew.spawn(lambda first=first: give(first), name="give")  # type: ignore[misc]
    for _ in range(3):
        crew.spawn(lambda: got.extend(channel), name="take")
    crew.join()
    assert sorted(got) == list(range(300))


def test_a_full_channel_makes_the_giver_wait() -> None:
    crew = Crew()
    channel: Channel[int] = Channel(crew, 3)
    put: list[int] = []

    def give() -> None:
        for number in range(10):
            channel.put(number)
            put.append(number)
        channel.close()

    crew.spawn(give, name="give")
    items = iter(channel)
    assert next(items) == 0
    assert len(put) <= 1 + 3 + 1
    assert list(items) == list(range(1, 10))
    crew.join()


@pytest.mark.parametrize("role", ["giver", "taker"])
def test_a_failure_stops_everybody_and_is_what_join_raises(role: str) -> None:
    """Whether the others wait for an item or for room."""
    crew = Crew()
    channel: Channel[int] = Channel(crew, 1)
    waiting = threading.Event()

    def fail() -> None:
        assert waiting.wait(TIMEOUT)
        raise ValueError("the cause")

    def work() -> None:
        waiting.set()
        if role == "giver":
            while True:
                channel.put(1)
        for _ in channel:
            pass

    crew.spawn(work, name="work")
    crew.spawn(fail, name="fail")
    with pytest.raises(ValueError, match="the cause"):
        crew.join()
    with pytest.raises(StoppedError):
        channel.put(1)


def test_the_first_reason_to_stop_is_kept() -> None:
    crew = Crew()
    crew.stop(KeyError("first"))
    crew.stop(ValueError("second"))
    crew.spawn(crew.check, name="late")
    with pytest.raises(KeyError):
        crew.join()


def test_stopping_wakes_what_waits_elsewhere() -> None:
    woken = threading.Event()
    crew = Crew(on_stop=woken.set)

    def wait() -> None:
        assert woken.wait(TIMEOUT)
        raise StoppedError

    crew.spawn(wait, name="wait")
    crew.stop(ValueError("why"))
    with pytest.raises(ValueError, match="why"):
        crew.join()
