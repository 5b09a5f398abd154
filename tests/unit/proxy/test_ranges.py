"""Byte ranges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpull.proxy.errors import RangeNotSatisfiableError
from fastpull.proxy.ranges import ByteRange, ContentRange, parse_content_range, parse_range


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-", (0, 10)),
        ("bytes=0-0", (0, 1)),
        ("bytes=3-5", (3, 6)),
        ("bytes=3-500", (3, 10)),
        ("bytes=9-", (9, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-300", (0, 10)),
        ("BYTES = 3-5 ", (3, 6)),
    ],
)
def test_a_range_is_fitted_to_the_body(header: str, expected: tuple[int, int]) -> None:
    requested = parse_range(header)
    assert requested is not None
    assert requested.resolve(10) == ByteRange(*expected)


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=99999999-"])
def test_a_range_behind_the_end_can_not_be_satisfied(header: str) -> None:
    requested = parse_range(header)
    assert requested is not None
    with pytest.raises(RangeNotSatisfiableError):
        requested.resolve(10)


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes", "bytes=", "bytes=-", "bytes=5-3", "bytes=a-b", "items=0-5", "bytes=0-1,3-4", "bytes=1 2-3",
     "bytes=+1-2", "bytes=0x1-2", "bytes=1-2-3", "bytes=\u0663-\u0665", "bytes=99999999999999999999999-", "bytes=-1-2"],
)  # fmt: skip
def test_what_is_no_range_gives_the_whole(header: str | None) -> None:
    """RFC 9110, 14.2: a Range that can not be read is ignored."""
    assert parse_range(header) is None


@given(st.text(max_size=60) | st.from_regex(r"\Abytes[ =]{1,3}\d{0,22}-\d{0,22}\Z"), st.integers(0, 2**63))
def test_any_header_resolves_inside_of_the_body(header: str, size: int) -> None:
    requested = parse_range(header)
    if requested is None:
        return
    try:
        span = requested.resolve(size)
    except RangeNotSatisfiableError:
        return
    assert 0 <= span.start < span.stop <= size


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes 0-9/100", ContentRange(ByteRange(0, 10), 100)),
        ("bytes 0-9/*", ContentRange(ByteRange(0, 10), None)),
        ("bytes */100", ContentRange(None, 100)),
        ("bytes  5-5/6 ", ContentRange(ByteRange(5, 6), 6)),
        ("bytes 5-4/6", None),
        ("bytes 0-100/100", None),
        ("bytes */*", None),
        ("0-9/100", None),
        ("bytes 0-9", None),
        ("bytes=0-9/100", None),
        (None, None),
    ],
)
def test_content_ranges(header: str | None, expected: ContentRange | None) -> None:
    assert parse_content_range(header) == expected


@given(st.text(max_size=60) | st.from_regex(r"\Abytes \d{1,22}-\d{1,22}/(\d{1,22}|\*)\Z"))
def test_any_content_range_is_consistent_or_nonsense(header: str) -> None:
    content = parse_content_range(header)
    if content is not None and content.range is not None:
        assert content.range.start < content.range.stop
        assert content.size is None or content.range.stop <= content.size
