"""What a scrub tells people and programs."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from fastpull.cache.scrub import ScrubKind, ScrubState, rate_of
from fastpull.cache.scrub_view import _with_a_bar, follow, progress_line, summary_lines
from fastpull.config.errors import ConfigError


def state(*kinds: ScrubKind, stage: str = "done", notes: tuple[str, ...] = ()) -> ScrubState:
    return ScrubState(stage=stage, kinds=kinds, seconds=2.0, notes=notes)  # type: ignore[arg-type]


RIGHT = ScrubKind(kind="chunks", total=1000, checked=1000, bytes=64_000_000)
REPAIRED = ScrubKind(kind="blobs", total=3, checked=3, bytes=1_000_000, damaged=1, dropped=1)
UNCHECKED = ScrubKind(kind="plans", total=1, checked=1, unchecked=1)


@pytest.mark.parametrize(("text", "rate"), [("100MB/s", 100_000_000), ("1GiB/s", 2**30), ("0", 0), ("512k", 512_000)])
def test_a_rate_is_a_size_a_second(text: str, rate: int) -> None:
    assert rate_of(text) == rate


@pytest.mark.parametrize("text", ["", "fast", "-1MB/s", "100MB/h"])
def test_a_rate_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="100MB/s"):
        rate_of(text)


@pytest.mark.parametrize(
    ("kinds", "code", "last"),
    [
        ((RIGHT,), 0, "all is right"),
        ((RIGHT, REPAIRED), 0, "repaired: what was dropped comes back when it is needed"),
        ((RIGHT, UNCHECKED), 1, "not all could be checked or dropped: see above"),
    ],
)
def test_the_exit_code_says_whether_all_is_right_now(
    kinds: tuple[ScrubKind, ...], code: int, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Repaired is right, and the last line says which of the two."""
    assert follow([state(RIGHT, stage="running"), state(*kinds)], as_json=False) == code
    assert capsys.readouterr().out.splitlines()[-1] == last


def test_json_has_the_sums_and_the_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    assert follow([state(RIGHT, REPAIRED, notes=("blobs: a: dropped",))], as_json=True) == 0
    out = json.loads(capsys.readouterr().out)
    assert (out["clean"], out["checked"], out["damaged"], out["dropped"]) == (True, 1003, 1, 1)
    assert [kind["kind"] for kind in out["kinds"]] == ["chunks", "blobs"]
    assert out["notes"] == ["blobs: a: dropped"]


def test_a_scrub_that_breaks_off_has_no_result() -> None:
    """The process ended, or the connection: nothing is said of what was not looked at."""
    assert follow([state(RIGHT, stage="running")], as_json=False) is None
    assert follow([], as_json=True) is None


def test_progress_names_what_it_is_at() -> None:
    line = progress_line(state(RIGHT, ScrubKind(kind="blobs", total=4, checked=1, bytes=0), stage="running"))
    assert line == "blobs 1 of 4, 64.0 MB, 32.0 MB/s, 0 damaged"


def test_the_summary_names_what_was_found() -> None:
    lines = list(summary_lines(state(RIGHT, REPAIRED, UNCHECKED, notes=("blobs: a: dropped",))))
    assert lines[:4] == [
        "chunks: 1,000 checked, none damaged",
        "blobs: 3 checked, 1 damaged and 1 dropped",
        "plans: 1 checked, none damaged, 1 NOT CHECKED",
        "  blobs: a: dropped",
    ]


def test_a_terminal_gets_a_bar() -> None:
    """It ends without a trace; the last state is the result."""
    out = io.StringIO()
    last = state(RIGHT)
    assert _with_a_bar([state(RIGHT, stage="running"), last], Console(file=out, force_terminal=True, width=120)) is last
    assert "64.0 MB" in out.getvalue()
