"""How a scrub looks to whoever started it: a bar on a terminal, lines elsewhere, JSON where asked for."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TextIO

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fastpull.cache.scrub import ScrubKind, ScrubState
from fastpull.cache.wire import Message

EXIT_NOT_CLEAN = 1
_LINE_SECONDS = 5.0


class ScrubSummary(Message, frozen=True, kw_only=True):
    """``scrub --json``. ``clean``: everything was checked, and nothing damaged is left."""

    clean: bool
    checked: int
    damaged: int
    dropped: int
    unchecked: int
    bytes: int
    seconds: float
    kinds: tuple[ScrubKind, ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, state: ScrubState) -> ScrubSummary:
        return cls(
            clean=state.is_clean,
            checked=sum(kind.checked for kind in state.kinds),
            damaged=sum(kind.damaged for kind in state.kinds),
            dropped=sum(kind.dropped for kind in state.kinds),
            unchecked=sum(kind.unchecked for kind in state.kinds),
            bytes=sum(kind.bytes for kind in state.kinds),
            seconds=state.seconds,
            kinds=state.kinds,
            notes=state.notes,
        )


def follow(states: Iterable[ScrubState], *, as_json: bool) -> int | None:
    """Show a scrub to its end; return the exit code, or ``None`` where it broke off."""
    console = Console(stderr=True)
    if console.is_terminal:
        last = _with_a_bar(states, console)
    else:
        last = _with_lines(states, sys.stderr if not as_json else None)
    if last is None or last.stage != "done":
        return None
    if as_json:
        summary = msgspec.json.encode(ScrubSummary.of(last))
        sys.stdout.write(msgspec.json.format(summary).decode() + "\n")
    else:
        sys.stdout.writelines(line + "\n" for line in summary_lines(last))
    return 0 if last.is_clean else EXIT_NOT_CLEAN


def summary_lines(state: ScrubState) -> Iterator[str]:
    """The result, for people. Pure."""
    for kind in state.kinds:
        if kind.checked or kind.unchecked:
            yield f"{kind.kind}: {kind.checked:,} checked{_findings(kind.damaged, kind.dropped, kind.unchecked)}"
    yield from (f"  {note}" for note in state.notes)
    total = ScrubSummary.of(state)
    yield (
        f"{total.checked:,} checked{_findings(total.damaged, total.dropped, total.unchecked)}; "
        f"{_megabytes(total.bytes)} in {state.seconds:.1f} s"
    )
    if total.clean:
        yield "all is right" if not total.damaged else "repaired: what was dropped comes back when it is needed"
    else:
        yield "not all could be checked or dropped: see above"


def progress_line(state: ScrubState) -> str:
    """How far it is, in one line. Pure."""
    current = next((kind for kind in state.kinds if kind.checked < kind.total), None)
    total = ScrubSummary.of(state)
    where = f"{current.kind} {current.checked:,} of {current.total:,}" if current else "at its end"
    rate = total.bytes / state.seconds if state.seconds else 0.0
    return f"{where}, {_megabytes(total.bytes)}, {_megabytes(rate)}/s, {total.damaged} damaged"


def _with_lines(
    states: Iterable[ScrubState], out: TextIO | None, clock: Callable[[], float] = time.monotonic
) -> ScrubState | None:
    last = None
    told = clock()
    for last in states:
        if out is not None and last.stage == "running" and clock() - told >= _LINE_SECONDS:
            told = clock()
            out.write(progress_line(last) + "\n")
            out.flush()
    return last


def _with_a_bar(states: Iterable[ScrubState], console: Console) -> ScrubState | None:
    last = None
    columns = (TextColumn("scrub"), BarColumn(bar_width=40), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("", total=None)
        for last in states:
            progress.update(
                bar,
                total=sum(kind.total for kind in last.kinds) or None,
                completed=sum(kind.checked for kind in last.kinds),
                description=progress_line(last),
            )
    return last


def _findings(damaged: int, dropped: int, unchecked: int) -> str:
    found = f", {damaged:,} damaged and {dropped:,} dropped" if damaged else ", none damaged"
    return found + (f", {unchecked:,} NOT CHECKED" if unchecked else "")


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB"
