"""A process that keeps dying is started ever more rarely, one that died once at once."""

from fastpull.proxy.workers.restarts import Restarts


def test_pauses_double_up_to_a_bound() -> None:
    restarts = Restarts()
    pauses = [restarts.pause(0.1) for _ in range(12)]

    assert pauses[:4] == [0.2, 0.4, 0.8, 1.6]
    assert pauses[-2:] == [30.0, 30.0]


def test_who_lived_for_a_while_is_forgiven() -> None:
    restarts = Restarts()
    for _ in range(5):
        restarts.pause(0.1)

    assert restarts.pause(61.0) == 0.2
    assert restarts.pause(0.1) == 0.4
