"""A report as one page: no script, nothing from elsewhere, readable in light and dark. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from html import escape
from math import ceil

from fastpull.fuse_client.cli.status import bytes_text
from fastpull.fuse_client.report.analysis import CAUSES, STEPS, Report
from fastpull.fuse_client.report.text import CAUSE_TEXT, ENDED_TEXT

MOST_FILES = 60
_CELL = 9
_WIDTH = STEPS * _CELL
_LEFT = 150  # for labels
_HEIGHT = 110

_STYLE = """
:root { color-scheme: light dark; --bg: #fcfcfb; --ink: #1c1c1a; --soft: #6a6a65; --line: #e3e3de; --none: #f0f0ec;
  --heat: #1f6fb2; --fetch: #2a78b5; --queue: #d9822b; --inflate: #2a9d7f; --disk: #8a6bbf; --bytes: #6a6a65; }
@media (prefers-color-scheme: dark) { :root { --bg: #171716; --ink: #ecece8; --soft: #a0a099; --line: #33332f;
  --none: #232321; --heat: #5aa9e6; --fetch: #5aa9e6; --queue: #eba04f; --inflate: #4fc3a1; --disk: #b197e0;
  --bytes: #a0a099; } }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 1080px; background: var(--bg); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.35rem; margin: 0; overflow-wrap: anywhere } h2 { font-size: 1.05rem; margin: 2.2rem 0 .3rem }
p { color: var(--soft); margin: .2rem 0 .8rem } .facts { display: flex; flex-wrap: wrap; gap: .8rem 2.4rem;
  margin: 1.4rem 0 } .facts b { display: block; font-size: 1.5rem; font-variant-numeric: tabular-nums }
.facts span { color: var(--soft); font-size: .85rem } svg { width: 100%; height: auto; display: block }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif } .axis { stroke: var(--line) }
.fetch { fill: var(--fetch) } .queue { fill: var(--queue) } .inflate { fill: var(--inflate) }
.disk { fill: var(--disk) } .bytes { fill: var(--bytes) } .heat { fill: var(--heat) } .none { fill: var(--none) }
ul { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; padding: 0; margin: .4rem 0 } li svg {
  width: 10px; height: 10px; display: inline-block; margin-right: .4rem }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th { text-align: right; font-weight: 500; color: var(--soft) } td, th { padding: .18rem .7rem; text-align: right;
  border-bottom: 1px solid var(--line) } td:last-child, th:last-child { text-align: left; width: 99% }
td:last-child { font-family: ui-monospace, monospace; font-size: .85rem; overflow-wrap: anywhere }
"""


def page(report: Report) -> str:
    """The whole document."""
    title = f"Start of {report.image or report.chain_id[:19]}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join([*_head(report, title), *_time_line(report), *_layers(report), *_bytes(report), *_files(report)])
        + "\n</body></html>\n"
    )


def _head(report: Report, title: str) -> Iterator[str]:
    begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(report.started_at))
    yield f"<h1>{escape(title)}</h1>"
    yield (
        f"<p>Mounted {begun}, first read {report.seconds_from_mount_to_first_read:.2f} s later, from where all times "
        f"count. {ENDED_TEXT[report.ended_by].capitalize()}. {escape(report.chain_id)}</p>"
    )
    yield (
        '<div class="facts">'
        + "".join(
            f"<div><b>{value}</b><span>{text}</span></div>"
            for value, text in (
                (f"{report.seconds:.2f} s", "until the last new byte was needed"),
                (f"{report.waiting_seconds:.2f} s", "somebody waited for the image"),
                (f"{report.free_seconds:.2f} s", "nobody waited: not the image's time"),
                (bytes_text(report.used_bytes), f"used, of {bytes_text(report.image_bytes)}"),
                (bytes_text(report.fetched_received_bytes), "came over the network"),
            )
        )
        + "</div>"
    )


def _time_line(report: Report) -> Iterator[str]:
    yield "<h2>Readers that waited</h2><p>How many at a time, on average, and for what.</p><ul>"
    for cause in CAUSES:
        key = f'<svg viewBox="0 0 10 10"><rect class="{cause}" width="10" height="10" rx="2"/></svg>'
        yield f"<li>{key}{CAUSE_TEXT[cause]}: {report.waited_by_cause[cause]:.2f} s</li>"
    yield "</ul>"
    readers = [
        {cause: seconds / report.step_seconds for cause, seconds in step.waited_by_cause.items()}
        for step in report.steps
    ]
    most = max(1, ceil(max((sum(step.values()) for step in readers), default=0)))
    bars: list[str] = []
    for number, step in enumerate(readers):
        base = float(_HEIGHT)
        told = ", ".join(f"{cause} {share:.2f}" for cause, share in step.items() if share)
        parts = []
        for cause in CAUSES:
            if height := step[cause] / most * (_HEIGHT - 6):
                base -= height
                parts.append(_rect(cause, _LEFT + number * _CELL, base, _CELL - 1, height))
        if parts:
            bars.append(f"<g>{''.join(parts)}<title>{number * report.step_seconds:.2f} s: {told}</title></g>")
    yield _chart(report, bars, f"{most} reader{'s' if most > 1 else ''}")

    yield "<h2>New bytes</h2><p>Content that was needed for the first time.</p>"
    most_bytes = max(1, *(step.touched_bytes for step in report.steps))
    yield _chart(
        report,
        (
            f"<g>{_rect('bytes', _LEFT + n * _CELL, _HEIGHT - height, _CELL - 1, height)}"
            f"<title>{n * report.step_seconds:.2f} s: {bytes_text(step.touched_bytes)}</title></g>"
            for n, step in enumerate(report.steps)
            if (height := step.touched_bytes / most_bytes * (_HEIGHT - 6))
        ),
        f"{bytes_text(most_bytes / report.step_seconds)}/s",
    )


def _layers(report: Report) -> Iterator[str]:
    if not report.layers:
        return
    yield "<h2>Layers</h2><p>Which layer was needed when: the stronger, the more. The lowest layer stands on top.</p>"
    most = max([1, *(count for layer in report.layers for count in layer.touched_by_step)])
    rows: list[str] = []
    for row, layer in enumerate(report.layers):
        y = 2 + row * 22
        share = f"{bytes_text(layer.touched_bytes)} of {bytes_text(layer.content_bytes)}"
        rows.append(f'<text x="0" y="{y + 9}">{row} · {escape(layer.digest[7:19])}</text>')
        rows.append(f'<text x="0" y="{y + 19}" opacity=".75">{share}</text>')
        rows.append(_rect("none", _LEFT, y, _WIDTH - 1, 20))
        for step, count in enumerate(layer.touched_by_step):
            if count:
                told = f"<title>{step * report.step_seconds:.2f} s: {bytes_text(count)}</title>"
                strength = 0.2 + 0.8 * (count / most) ** 0.4
                x = _LEFT + step * _CELL
                cell = _rect("heat", x, y, _CELL - 1, 20, f' fill-opacity="{strength:.2f}"')
                rows.append(f"<g>{cell}{told}</g>")
    height = 4 + 22 * len(report.layers)
    yield (
        f'<svg viewBox="0 0 {_LEFT + _WIDTH} {height + 16}" role="img" aria-label="Layers over time">{"".join(rows)}'
        f"{_times(report, height + 12)}</svg>"
    )


def _bytes(report: Report) -> Iterator[str]:
    yield "<h2>Bytes</h2>"
    lanes = ", ".join(f"{bytes_text(lane.content_bytes)} by {lane.lane}" for lane in report.fetched if lane.chunks)
    yield (
        f"<p>Fetched {bytes_text(report.fetched_content_bytes)} of content{f' ({lanes})' if lanes else ''}; "
        f"{bytes_text(report.vain_bytes)} of it, {report.vain_chunks:,} chunks, in vain. "
    )
    if report.planned_chunks:
        yield (
            f"The plan had {report.planned_chunks:,} chunks, {bytes_text(report.planned_bytes)}; of the "
            f"{report.used_chunks:,} chunks that were used {report.plan_hits:,} stood in it, "
            f"{report.plan_misses:,} did not.</p>"
        )
    else:
        yield "There was no plan yet.</p>"


def _files(report: Report) -> Iterator[str]:
    yield '<h2>Files</h2><p>Those that were waited for longest first.</p><div class="wide"><table>'
    yield "<tr><th>waited</th><th>reads</th><th>touched</th><th>first</th><th>layer</th><th>file</th></tr>"
    for file in report.files[:MOST_FILES]:
        cells = (
            f"{file.waited_seconds:.3f}&nbsp;s",
            f"{file.waits:,}",
            bytes_text(file.touched_bytes).replace(" ", "&nbsp;"),
            f"{file.first_seconds:.2f}&nbsp;s",
            str(file.layer) if file.layer >= 0 else "",
            escape(file.path),
        )
        yield "<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
    yield "</table></div>"
    if (more := len(report.files) + report.files_left_out - MOST_FILES) > 0:
        yield f"<p>… and {more:,} more.</p>"


def _chart(report: Report, bars: Iterable[str], top: str) -> str:
    lines = "".join(f'<line class="axis" x1="{_LEFT}" x2="{_LEFT + _WIDTH}" y1="{y}" y2="{y}"/>' for y in (6, _HEIGHT))
    return (
        f'<svg viewBox="0 0 {_LEFT + _WIDTH} {_HEIGHT + 16}" role="img">{lines}'
        f'<text x="{_LEFT - 8}" y="10" text-anchor="end">{escape(top)}</text>'
        f'<text x="{_LEFT - 8}" y="{_HEIGHT}" text-anchor="end">0</text>'
        f"{''.join(bars)}{_times(report, _HEIGHT + 13)}</svg>"
    )


def _times(report: Report, y: int) -> str:
    total = STEPS * report.step_seconds
    digits = 2 if total < 4 else 1
    return "".join(
        f'<text x="{_LEFT + part * _WIDTH / 4:.0f}" y="{y}" '
        f'text-anchor="{"start" if not part else "end" if part == 4 else "middle"}">'
        f"{total * part / 4:.{digits}f} s</text>"
        for part in range(5)
    )


def _rect(kind: str, x: float, y: float, width: float, height: float, more: str = "") -> str:
    return f'<rect class="{kind}" x="{x:g}" y="{y:.1f}" width="{width:g}" height="{height:.1f}"{more}/>'
