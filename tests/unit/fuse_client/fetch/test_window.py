"""The window grows with the rate of the link."""

import pytest

from fastpull.fuse_client.fetch.window import WindowSize

MIB = 1 << 20


def after(size: int, seconds: float, *, answers: int = 100, streams: int = 1) -> int:
    window = WindowSize()
    for _ in range(answers):
        window.received(size, seconds, streams)
    return window.bytes


def test_a_link_that_nobody_knows_is_taken_for_an_ordinary_one() -> None:
    assert WindowSize().bytes == 512 << 10
    assert after(100, 1.0) == 512 << 10, "of 10,000 bytes nothing can be said"
    assert after(MIB, 0.0) == 512 << 10, "they came all at once"


@pytest.mark.parametrize(
    ("bytes_per_second", "window"),
    [(300 * MIB, int(2.1 * MIB)), (30 * MIB, int(0.21 * MIB)), (1 * MIB, 128 << 10)],
)
def test_a_window_is_what_comes_in_seven_milliseconds(bytes_per_second: int, window: int) -> None:
    assert after(MIB, MIB / bytes_per_second) == pytest.approx(window, rel=0.01)


def test_answers_that_share_the_link_do_not_make_it_slower() -> None:
    assert after(MIB, 0.04, streams=4) == after(MIB, 0.01)


def test_a_link_that_became_slow_is_believed_soon() -> None:
    window = WindowSize()
    for _ in range(1000):
        window.received(MIB, 0.004, 1)
    for _ in range(64):
        window.received(MIB, 0.1, 1)
    assert window.bytes < 256 << 10
