"""Reports: what is told of a start, to people, programs and browsers."""

from __future__ import annotations

import re
from array import array
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpull.fuse_client.report.analysis import KnownLayer, Report, analyse, union
from fastpull.fuse_client.report.html import page
from fastpull.fuse_client.report.places import UNKNOWN, Places
from fastpull.fuse_client.report.text import report_lines
from fastpull.fuse_client.start_record import Fetched, StartRecord, Wait
from fastpull.image.file_places import FilePlace

CHAIN = "sha256:" + "ab" * 32
PLACES = Places([FilePlace(0, 5000, b"bin/<b>"), FilePlace(8192, 100, b"lib/c")])


def record(*waits: Wait, touches: tuple[tuple[int, int, int, int, bool], ...] = ()) -> StartRecord:
    columns = list(zip(*touches, strict=True)) or [()] * 5
    return StartRecord(
        chain_id=CHAIN,
        started_at=1.0,
        ended_by="settled",
        indexes=array("I", columns[0]).tobytes(),
        offsets=array("Q", columns[1]).tobytes(),
        sizes=array("I", columns[2]).tobytes(),
        at_ms=array("I", columns[3]).tobytes(),
        foreseen=bytes(columns[4]),
        waits=waits,
        fetched=(Fetched(lane="demand", chunks=2, received_bytes=50, content_bytes=150),),
        planned_chunks=1,
        content_bytes=5100,
    )


START = record(
    Wait(0, 4096, 1_000_000, 100_000, 300_000, 100_000),
    Wait(4096, 4096, 1_200_000, 0, 500_000, 0),
    Wait(8192, 4096, 2_500_000, 0, 0, 0, 500_000),
    touches=((0, 0, 3000, 1000, True), (1, 3000, 2000, 1500, False), (2, 8192, 100, 5000, True)),
)


def full_report() -> Report:
    return analyse(
        START,
        PLACES.path,
        image="a/<i>:1",
        layers=[KnownLayer("sha256:" + "1" * 64, 40), KnownLayer("sha256:" + "2" * 64, 60)],
        layer_of_places=[0, 0, 1],
        sizes=[3000, 2000, 100],
    )


def test_the_time_in_which_nobody_waited_is_told_apart() -> None:
    """Waits that overlap count once there, and in full by cause. The clock starts with the first read."""
    report = full_report()

    assert (report.seconds_from_mount_to_first_read, report.seconds) == (1.0, 4.0)
    assert (report.waiting_seconds, report.free_seconds) == (pytest.approx(1.2), pytest.approx(2.8))
    assert report.waited_by_cause == pytest.approx({"fetch": 0.8, "queue": 0.1, "inflate": 0.1, "disk": 0.5})


def test_waits_and_bytes_are_told_by_file_and_layer() -> None:
    report = full_report()

    assert [(f.path, f.waits, f.touched_bytes, f.layer) for f in report.files] == [
        ("/bin/<b>", 2, 5000, 0),
        ("/lib/c", 1, 100, 1),
    ]
    assert report.files[0].waited_seconds == pytest.approx(1.0)
    assert [(x.touched_bytes, x.content_bytes, sum(x.touched_by_step)) for x in report.layers] == [
        (5000, 5000, 5000),
        (100, 100, 100),
    ]
    assert (report.plan_hits, report.plan_misses, report.used_bytes) == (2, 1, 5100)


@given(
    st.lists(st.tuples(st.integers(0, 10**7), *[st.integers(0, 10**6)] * 4), max_size=20),
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 10**5)), max_size=20),
)
def test_nothing_is_lost_on_the_time_line(waits: list[tuple[int, ...]], touches: list[tuple[int, int]]) -> None:
    """Whatever was recorded, its sums are those of the steps, and it can be shown."""
    start = record(
        *(Wait(0, 1, *wait) for wait in waits), touches=tuple((0, 0, size, at, False) for size, at in touches)
    )
    report = analyse(start, lambda _: UNKNOWN)

    for cause, seconds in report.waited_by_cause.items():
        assert sum(step.waited_by_cause[cause] for step in report.steps) == pytest.approx(seconds, abs=1e-3)
    assert sum(step.touched_bytes for step in report.steps) == report.used_bytes
    assert 0 <= report.free_seconds <= report.seconds
    assert list(report_lines(report))
    assert page(report)


def test_spans_cover_what_they_cover_together() -> None:
    assert union([(5, 9), (0, 2), (1, 3), (6, 7), (9, 10)]) == 8


def test_a_place_is_its_files_up_to_the_end_of_its_block() -> None:
    """Behind it there is no file."""
    offsets = (0, 4999, 8191, 8192, 12287, 12288)
    assert [PLACES.path(offset) for offset in offsets] == ["/bin/<b>"] * 3 + ["/lib/c"] * 2 + [UNKNOWN]


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)


def test_the_page_loads_nothing_and_escapes_names() -> None:
    """Names come from images: none of them becomes markup. No script, no address, no image from elsewhere."""
    text = page(full_report())
    parsed = _Page()
    parsed.feed(text)

    assert parsed.tags.isdisjoint({"b>", "i", "script", "link", "img", "iframe", "image"})
    assert re.search(r"(https?:)?//|url\(|@import", text) is None
    assert "&lt;i&gt;" in text
    assert "/bin/&lt;b&gt;" in text


def test_the_terminal_shows_where_the_seconds_went() -> None:
    text = "\n".join(report_lines(full_report()))

    assert "2.80 s  nobody waited" in text
    assert "0.80 s  for bytes on the network" in text
    assert re.search(r"1\.000 s +2 +4\.9 KiB  /bin/<b>", text)
