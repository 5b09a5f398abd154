"""Redirects and presigned links."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from fastpull.proxy.errors import MirrorError, UpstreamForbiddenError, UpstreamInvalidError
from fastpull.proxy.upstream.redirects import follow, good_for_seconds, is_same_place

HERE = URL("https://registry.example/v2/a/blobs/sha256:x")
NOON = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("https://cdn.example/b?sig=a%2Bb%2F%3D", "https://cdn.example/b?sig=a%2Bb%2F%3D"),
        ("/artifacts-downloads/x?y=z", "https://registry.example/artifacts-downloads/x?y=z"),
        ("other", "https://registry.example/v2/a/blobs/other"),
        ("//cdn.example/x", "https://cdn.example/x"),
    ],
)
def test_a_redirect_is_followed_as_it_is_written(location: str, expected: str) -> None:
    assert str(follow(HERE, location)) == expected


@pytest.mark.parametrize("location", [None, "", "ftp://x/", "file:///etc/passwd", "http://[::1", "x" * 40000,
                                      "https://a:b@cdn.example/"])  # fmt: skip
def test_a_redirect_to_nowhere_is_refused(location: str | None) -> None:
    with pytest.raises(UpstreamInvalidError):
        follow(HERE, location)


def test_a_fall_from_https_is_refused() -> None:
    with pytest.raises(UpstreamForbiddenError):
        follow(HERE, "http://registry.example/x")
    assert follow(URL("http://registry.example/"), "http://cdn.example/x").host == "cdn.example"


@given(st.text(max_size=200))
def test_any_location_leads_somewhere_or_is_refused(location: str) -> None:
    try:
        target = follow(HERE, location)
    except MirrorError:
        return
    assert target.scheme == "https"
    assert target.host


@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        ("", 240),
        ("X-Amz-Date=20260301T115900Z&X-Amz-Expires=180", 90),
        ("X-Amz-Date=20260301T115900Z&X-Amz-Expires=3600", 240),
        ("X-Amz-Date=20260301T110000Z&X-Amz-Expires=60", 0),
        ("X-Goog-Date=20260301T120000Z&X-Goog-Expires=100", 70),
        ("se=2026-03-01T12:02:00Z&sig=x", 90),
        ("se=2026-03-01T12:02:00&sig=x", 90),
        (f"Expires={int(NOON) + 60}&Signature=x", 30),
        ("X-Amz-Date=nonsense&X-Amz-Expires=60", 0),
        ("Expires=nonsense", 0),
        ("Expires=99999999999999999999999999", 240),
    ],
)
def test_a_link_is_used_until_shortly_before_it_ends(query: str, seconds: float) -> None:
    assert good_for_seconds(URL(f"https://cdn.example/x?{query}", encoded=True), NOON) == pytest.approx(seconds)


@given(st.text(st.characters(codec="ascii", exclude_characters="#"), max_size=80))
def test_any_query_gives_a_life_in_bounds(query: str) -> None:
    try:
        url = URL(f"https://cdn.example/x?X-Amz-Date=20260301T115900Z&X-Amz-Expires={query}", encoded=True)
    except ValueError:
        return
    assert 0 <= good_for_seconds(url, NOON) <= 240


def test_ports_and_schemes_are_other_places() -> None:
    assert is_same_place(URL("https://a"), URL("https://a:443/x"))
    assert not is_same_place(URL("https://a"), URL("http://a"))
    assert not is_same_place(URL("https://a"), URL("https://a:444"))
    assert not is_same_place(URL("https://a"), URL("https://b"))
