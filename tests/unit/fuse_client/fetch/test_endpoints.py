"""Which proxy is asked, and how long one waits."""

from __future__ import annotations

import pytest

from fastpull.fuse_client.fetch.backoff import CEILING_SECONDS, FIRST_SECONDS, backoff
from fastpull.fuse_client.fetch.endpoints import FAILURES_UNTIL_DOWN, Endpoint, Endpoints

URLS = ["http://a/", "http://b", "http://c"]


def pick(endpoints: Endpoints, attempt: int = 0) -> Endpoint:
    found = endpoints.pick(attempt)
    assert found is not None
    return found


def test_the_first_is_preferred_and_retries_go_round() -> None:
    """The order of the settings is the order of preference."""
    endpoints = Endpoints(URLS)

    assert [pick(endpoints, n).url for n in range(4)] == ["http://a", "http://b", "http://c", "http://a"]


def test_a_refused_connection_takes_a_proxy_out_at_once() -> None:
    """There is nobody; why try again."""
    endpoints = Endpoints(URLS)
    assert endpoints.failed(endpoints.all[0], "refused", 10.0, refused=True)

    assert pick(endpoints).url == "http://b"
    assert endpoints.due(10.0) == []
    assert endpoints.due(11.0) == [endpoints.all[0]]


def test_other_failures_must_repeat() -> None:
    """One cut answer is no outage, and a good one makes up for it."""
    endpoints = Endpoints(URLS)
    first = endpoints.all[0]
    for _ in range(FAILURES_UNTIL_DOWN - 1):
        assert not endpoints.failed(first, "cut", 1.0)
    assert not endpoints.answered(first)
    assert [endpoints.failed(first, "cut", 1.0) for _ in range(FAILURES_UNTIL_DOWN)] == [False, False, True]


def test_a_good_probe_brings_it_back() -> None:
    """Until then probes get rarer, and ``last_error`` says what is wrong."""
    endpoints = Endpoints(URLS[:1])
    only = endpoints.all[0]
    endpoints.failed(only, "refused", 0.0, refused=True)
    assert (endpoints.pick(), endpoints.any_up) == (None, False)
    waits = []
    for _ in range(12):
        at = only.probe_at
        endpoints.probe_failed(only, "still away", at)
        waits.append(only.probe_at - at)
    assert waits[-1] > waits[0]
    assert endpoints.next_probe() == only.probe_at
    assert endpoints.last_error() == "still away"

    assert endpoints.answered(only)
    assert (pick(endpoints), endpoints.next_probe(), only.last_error) == (only, None, "")


@pytest.mark.parametrize("attempt", [1, 2, 3, 10, 1000])
def test_backoff_doubles_to_a_ceiling_with_jitter(attempt: int) -> None:
    """The upper half is random, so that a fleet does not come back at one moment."""
    limit = min(CEILING_SECONDS, FIRST_SECONDS * 2.0 ** (min(attempt, 20) - 1))

    assert backoff(attempt, uniform=lambda low, _high: low) == limit / 2
    assert backoff(attempt, uniform=lambda _low, high: high) == limit
