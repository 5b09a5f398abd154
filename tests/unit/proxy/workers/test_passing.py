"""What goes on to the next hop: everything but what is for this hop."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from fastpull.proxy.workers.passing import end_to_end

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9-]{0,12}", fullmatch=True)


@pytest.mark.parametrize(
    "name",
    [
        "Connection",
        "keep-alive",
        "Proxy-Authorization",
        "Proxy-Connection",
        "TE",
        "Trailer",
        "TRANSFER-ENCODING",
        "Upgrade",
    ],
)
def test_headers_of_one_hop_end_there(name: str) -> None:
    """RFC 9110, 7.6.1."""
    assert list(end_to_end(CIMultiDict({name: "x", "Accept": "y"})).items()) == [("Accept", "y")]


def test_connection_names_further_ones() -> None:
    headers = CIMultiDict([("Connection", "close, X-Hop"), ("Connection", "x-other"), ("x-hop", "1"), ("X-Other", "2")])

    assert list(end_to_end(headers)) == []


@pytest.mark.parametrize("name", ["Content-Length", "Host", "Authorization", "Range"])
def test_connection_can_not_take_away_what_the_request_is(name: str) -> None:
    """Else a client would have the two hops disagree about what was asked."""
    assert name in end_to_end(CIMultiDict({"Connection": name.lower(), name: "1"}))


def test_a_header_that_comes_twice_goes_on_twice() -> None:
    headers = CIMultiDict([("Warning", "a"), ("Accept", "x"), ("Warning", "b")])

    assert list(end_to_end(headers).items()) == list(headers.items())


@given(st.lists(st.tuples(NAMES, st.text("abc ", max_size=5))))
def test_nothing_is_invented_and_the_order_is_kept(items: list[tuple[str, str]]) -> None:
    left = iter(items)

    assert all(item in left for item in end_to_end(CIMultiDict(items)).items())
