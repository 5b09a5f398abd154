"""What ``warm`` shows while it works and at its end."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fastpull.cache.wire import LayerProgress, WarmRequest, WarmState
from fastpull.proxy.cli.amounts import bytes_text, seconds_text, short
from fastpull.proxy.cli.connection import NotFoundError, ProxyAwayError
from fastpull.proxy.cli.warm import follow
from fastpull.proxy.cli.warm_summary import Totals, summarise
from fastpull.proxy.cli.warm_view import BarsView, LinesView

READY = LayerProgress(
    digest="sha256:" + "a" * 64,
    diff_id="sha256:" + "1" * 64,
    stage="ready",
    blob_bytes=1000,
    indexed_bytes=1000,
    content_bytes=3000,
    new_bytes=2000,
    files=7,
)
RUNNING = LayerProgress(
    digest="sha256:" + "b" * 64, diff_id="sha256:" + "2" * 64, stage="indexing", blob_bytes=3000, indexed_bytes=500
)
FAILED = LayerProgress(
    digest="sha256:" + "c" * 64, diff_id="sha256:" + "3" * 64, stage="failed", blob_bytes=5, error="layer is cut"
)


def state(*layers: LayerProgress, stage: str = "working", **fields: object) -> WarmState:
    return WarmState(id="1", image="docker.io/library/demo:1", stage=stage, layers=layers, **fields)  # type: ignore[arg-type]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_tell_each_layer_once_and_the_total_now_and_then() -> None:
    out, clock = io.StringIO(), Clock()
    view = LinesView(out, clock)

    for second in range(7):
        clock.now = float(second)
        view.show(state(READY, RUNNING))

    lines = out.getvalue().splitlines()
    assert lines[0] == "docker.io/library/demo:1: 2 layers, 3.9 KiB compressed"
    assert [line for line in lines if "aaaaaaaaaaaa ready" in line] == [lines[1]]
    assert "7 files" in lines[1]
    assert len([line for line in lines if "37 %" in line]) == 1


def test_a_failed_layer_is_told_with_its_reason() -> None:
    out = io.StringIO()
    LinesView(out).show(state(FAILED))

    assert "cccccccccccc failed: layer is cut" in out.getvalue()


def test_bars_show_layers_and_total() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160)

    with BarsView(console) as view:
        view.show(state(stage="resolving"))
        view.show(state(READY, RUNNING, FAILED))

    assert "bbbbbbbbbbbb" in out.getvalue()
    assert "total" in out.getvalue()
    assert "1/3 layers" in out.getvalue()


def test_many_layers_do_not_fill_more_than_a_screen() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=160, height=30)
    layers = [
        LayerProgress(digest=f"sha256:{n:064x}", diff_id=f"sha256:{n:064x}", blob_bytes=10, stage="waiting")
        for n in range(100)
    ]

    with BarsView(console) as view:
        view.show(state(*layers))
        visible = [task for task in view._progress.tasks if task.visible]

    assert len(visible) <= 17


def test_a_layer_that_is_in_the_image_twice_counts_once_as_new() -> None:
    summary = summarise(state(READY, READY, stage="done", seconds=1.5))

    assert (summary.layers, summary.files, summary.new_bytes) == (2, 14, 2000)
    assert Totals.of(state(READY, READY)).all_bytes == 1000


class ScriptedProxy:
    """Answers one after another; an exception is raised."""

    def __init__(self, *answers: WarmState | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def _next(self, what: str) -> WarmState:
        self.asked.append(what)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def post(self, path: str, *_: object) -> WarmState:
        return self._next(f"POST {path}")

    def get(self, path: str, *_: object) -> WarmState:
        return self._next(f"GET {path}")


def followed(proxy: ScriptedProxy, clock: Clock | None = None) -> WarmState:
    clock = clock or Clock()

    def sleep(seconds: float) -> None:
        clock.now += seconds

    return follow(proxy, WarmRequest(image="demo"), lambda _: None, clock=clock, sleep=sleep)  # type: ignore[arg-type]


def test_a_proxy_that_restarts_meanwhile_is_asked_again() -> None:
    proxy = ScriptedProxy(
        state(RUNNING), ProxyAwayError("refused"), NotFoundError("no such job"), state(RUNNING), state(stage="done")
    )

    assert followed(proxy).stage == "done"
    assert proxy.asked == ["POST /v1/warm", "GET /v1/warm/1", "GET /v1/warm/1", "POST /v1/warm", "GET /v1/warm/1"]


def test_a_proxy_that_stays_away_ends_the_command() -> None:
    with pytest.raises(ProxyAwayError):
        followed(ScriptedProxy(state(RUNNING), *[ProxyAwayError("refused")] * 1000))


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 30, "5.0 GiB"), (9 << 50, "9437184.0 GiB")],
)
def test_bytes_are_readable(count: int, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.04 s"), (12.34, "12.3 s"), (75, "1 min 15 s"), (59.99, "60.0 s"), (7322, "2 h 2 min")],
)
def test_durations_are_readable(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


def test_digests_are_shortened() -> None:
    assert short("sha256:" + "ab" * 32) == "abababababab"
    assert short("") == ""
