"""A report for a terminal. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterator

from fastpull.fuse_client.cli.ls import printable
from fastpull.fuse_client.cli.status import bytes_text
from fastpull.fuse_client.report.analysis import CAUSES, Report

MOST_FILES = 15
_BARS = " ▁▂▃▄▅▆▇█"

CAUSE_TEXT = {
    "fetch": "for bytes on the network",
    "queue": "for a free connection",
    "inflate": "for decompression",
    "disk": "for this node's disk, and the check of its bytes",
}
ENDED_TEXT = {
    "": "it goes on",
    "settled": "settled",
    "limit": "recorded up to the time limit",
    "unmount": "recorded up to the unmount",
}


def report_lines(report: Report) -> Iterator[str]:
    """Line by line, without ends."""
    begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(report.started_at))
    yield f"start of {printable(report.image) or report.chain_id}, mounted {begun}, {ENDED_TEXT[report.ended_by]}"
    yield f"first read {report.seconds_from_mount_to_first_read:.2f} s after the mount; from there:"
    yield ""
    share = 100 * report.waiting_seconds / report.seconds if report.seconds else 0.0
    yield f"  {report.seconds:8.2f} s  until the last new byte was needed"
    yield f"  {report.waiting_seconds:8.2f} s  of them somebody waited for the image ({share:.0f} %)"
    yield f"  {report.free_seconds:8.2f} s  nobody waited: no work on the image can shorten these"
    yield ""
    yield f"waited in {report.waits:,} reads, summed over all readers:"
    for cause in CAUSES:
        yield f"  {report.waited_by_cause[cause]:8.2f} s  {CAUSE_TEXT[cause]}"
    yield ""
    yield f"waiting  |{_sparkline([sum(step.waited_by_cause.values()) for step in report.steps])}|"
    yield f"new bytes|{_sparkline([step.touched_bytes for step in report.steps])}|"
    yield f"          0 s{f'{report.seconds:.1f} s':>{len(report.steps) - 3}}"
    yield ""
    used = bytes_text(report.used_bytes)
    yield f"used:     {used} of {bytes_text(report.image_bytes)}, {report.used_chunks:,} chunks"
    lanes = ", ".join(f"{bytes_text(lane.content_bytes)} {lane.lane}" for lane in report.fetched if lane.chunks)
    yield (
        f"fetched:  {bytes_text(report.fetched_content_bytes)}, {bytes_text(report.fetched_received_bytes)} on the "
        f"wire: {lanes or 'nothing'}"
    )
    yield f"in vain:  {bytes_text(report.vain_bytes)}, {report.vain_chunks:,} chunks, not needed until the end"
    yield (
        f"plan:     {report.planned_chunks:,} chunks, {bytes_text(report.planned_bytes)}; {report.plan_hits:,} of the "
        f"used chunks stood in it, {report.plan_misses:,} did not"
        if report.planned_chunks
        else "plan:     there was none yet"
    )
    if report.layers:
        yield ""
        yield "layer            compressed       touched  of content  when"
        for layer in report.layers:
            yield (
                f"  {layer.number:2} {layer.digest[7:19]:12} {bytes_text(layer.blob_bytes):>10} "
                f"{bytes_text(layer.touched_bytes):>12} {bytes_text(layer.content_bytes):>11}  "
                f"|{_sparkline(layer.touched_by_step)}|"
            )
    yield ""
    yield "   waited    reads    touched  file"
    for file in report.files[:MOST_FILES]:
        yield (
            f"{file.waited_seconds:7.3f} s {file.waits:8,} {bytes_text(file.touched_bytes):>10}  {printable(file.path)}"
        )
    more = len(report.files) + report.files_left_out - MOST_FILES
    if more > 0:
        yield f"  … and {more:,} more files; --json lists them"


def _sparkline(values: list[float] | list[int] | tuple[int, ...]) -> str:
    most = max(values, default=0)
    # What is there at all is to be seen.
    return "".join(_BARS[min(8, max(1, round(8 * value / most))) if value else 0] for value in values)
