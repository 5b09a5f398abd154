"""How a running warm looks: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from fastpull.cache.wire import LayerProgress, WarmState
from fastpull.proxy.cli.amounts import bytes_text, seconds_text, short
from fastpull.proxy.cli.warm_summary import Totals, done, unique

_LINE_SECONDS = 5.0  # between two lines of the total, without a terminal
_MOST_BARS = 16  # of layers at a time; an image may have 127


class WarmView(Protocol):
    """Shows states as they arrive. ``with`` restores the terminal, also after Ctrl-C."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    def show(self, state: WarmState) -> None: ...


class SilentView:
    """Shows nothing: somebody reads JSON."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        return None

    def show(self, state: WarmState) -> None:  # noqa: ARG002 - that is its point
        return None


class LinesView(SilentView):
    """A line for each finished layer, and one for the total every few seconds."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._told: set[str] = set()
        self._resolved = False
        self._first = self._last = clock()
        self._first_bytes = 0

    def show(self, state: WarmState) -> None:
        layers = unique(state.layers)
        if layers and not self._resolved:
            self._resolved = True
            totals = Totals.of(state)
            self._first_bytes = totals.done_bytes
            self._line(f"{state.image}: {totals.all_layers} layers, {bytes_text(totals.all_bytes)} compressed")
        for layer in layers:
            if layer.stage in ("ready", "failed") and layer.diff_id not in self._told:
                self._told.add(layer.diff_id)
                self._line(_finished(layer))
        if state.stage == "working" and self._clock() - self._last >= _LINE_SECONDS:
            self._last = self._clock()
            self._line(self._total(Totals.of(state)))

    def _total(self, totals: Totals) -> str:
        rate = (totals.done_bytes - self._first_bytes) / max(self._clock() - self._first, 0.001)
        left = seconds_text((totals.all_bytes - totals.done_bytes) / rate) if rate > 0 else "unknown time"
        share = 100 * totals.done_bytes // max(totals.all_bytes, 1)
        return (
            f"{share} %, {bytes_text(totals.done_bytes)} of {bytes_text(totals.all_bytes)}, "
            f"{totals.ready_layers} of {totals.all_layers} layers, {bytes_text(rate)}/s, {left} left"
        )

    def _line(self, text: str) -> None:
        self._out.write(text + "\n")
        self._out.flush()


def _finished(layer: LayerProgress) -> str:
    if layer.stage == "failed":
        return f"layer {short(layer.digest)} failed: {layer.error}"
    return (
        f"layer {short(layer.digest)} ready: {bytes_text(layer.blob_bytes)} compressed, {layer.files} files, "
        f"{bytes_text(layer.content_bytes)}, {bytes_text(layer.new_bytes)} new"
    )


class BarsView:
    """A bar for each layer at work and one for the total."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )
        self._total: TaskID | None = None
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()

    def show(self, state: WarmState) -> None:
        if self._total is None:
            self._total = self._progress.add_task("resolving", total=None, note="")
        layers = unique(state.layers)
        if not layers:
            return
        totals = Totals.of(state)
        self._progress.update(
            self._total,
            description="total",
            total=totals.all_bytes,
            completed=totals.done_bytes,
            note=f"{totals.ready_layers}/{totals.all_layers} layers",
        )
        for layer in layers:
            self._bar(layer)
        self._hide_surplus(layers)

    def _bar(self, layer: LayerProgress) -> None:
        bar = self._bars.get(layer.diff_id)
        if bar is None:
            if layer.stage == "ready":
                return  # was here before: no bar needed
            bar = self._bars[layer.diff_id] = self._progress.add_task(
                short(layer.digest), total=max(layer.blob_bytes, 1), note=layer.stage
            )
        self._progress.update(bar, completed=done(layer), note=layer.stage)

    def _hide_surplus(self, layers: list[LayerProgress]) -> None:
        """Show the layers at work first, then the next waiting ones, never more than fit a screen."""
        room = _MOST_BARS
        for stages in (("fetching", "indexing", "failed"), ("waiting",), ("ready",)):
            for layer in layers:
                if layer.stage in stages and (bar := self._bars.get(layer.diff_id)) is not None:
                    visible = room > 0 and (layer.stage != "ready" or len(layers) <= _MOST_BARS)
                    room -= visible
                    self._progress.update(bar, visible=visible)
