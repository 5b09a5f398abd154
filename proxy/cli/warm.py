"""``fastpull-proxy warm``: have the running proxy pull, verify, ingest and keep an image."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import msgspec
from rich.console import Console
from rich.table import Table

from fastpull.cache.wire import WarmRequest, WarmState
from fastpull.proxy.cli.amounts import bytes_text, seconds_text, short
from fastpull.proxy.cli.connection import NotFoundError, ProxyAwayError, ProxyConnection
from fastpull.proxy.cli.errors import EXIT_FAILED
from fastpull.proxy.cli.warm_summary import WarmSummary, summarise
from fastpull.proxy.cli.warm_view import BarsView, LinesView, SilentView, WarmView

_POLL_SECONDS = 0.2
_AWAY_SECONDS = 30.0  # a proxy that restarts meanwhile is waited for


def warm(proxy: ProxyConnection, image: str, platform: str, *, as_json: bool) -> int:
    """Run until the image is warm or has failed; return the exit code."""
    console = Console(stderr=True)
    request = WarmRequest(image=image, platform=platform)
    with _view(console, as_json=as_json) as view:
        state = follow(proxy, request, view.show)
    summary = summarise(state)
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(summary)).decode() + "\n")
    elif state.stage == "done":
        _tell(summary)
    if state.stage == "failed":
        if not as_json:
            sys.stderr.write(f"fastpull-proxy: {image}: {state.error}\n")
            if state.remedy:
                sys.stderr.write(f"  remedy: {state.remedy}\n")
        return EXIT_FAILED
    return 0


def follow(
    proxy: ProxyConnection,
    request: WarmRequest,
    show: Callable[[WarmState], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> WarmState:
    """Start the job and follow it to its end, also across a restart of the proxy."""
    state = proxy.post("/v1/warm", request, WarmState)
    away_since: float | None = None
    while True:
        show(state)
        if state.stage in ("done", "failed"):
            return state
        sleep(_POLL_SECONDS)
        try:
            state = proxy.get(f"/v1/warm/{state.id}", WarmState)
            away_since = None
        except NotFoundError:
            state = proxy.post("/v1/warm", request, WarmState)  # it has restarted and forgotten the job
        except ProxyAwayError:
            away_since = away_since if away_since is not None else clock()
            if clock() - away_since > _AWAY_SECONDS:
                raise


def _view(console: Console, *, as_json: bool) -> WarmView:
    if as_json and not console.is_terminal:
        return SilentView()
    return BarsView(console) if console.is_terminal else LinesView(sys.stderr)


def _tell(summary: WarmSummary) -> None:
    rows = (
        ("image", summary.image),
        ("manifest", short(summary.manifest_digest)),
        ("layers", f"{summary.layers}"),
        ("files", f"{summary.files:,}"),
        ("compressed", bytes_text(summary.blob_bytes)),
        ("content", bytes_text(summary.content_bytes)),
        ("new after deduplication", _new(summary)),
        ("time", seconds_text(summary.seconds)),
    )
    console = Console()
    if not console.is_terminal:
        for name, value in rows:
            sys.stdout.write(f"{name}: {value}\n")
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in rows:
        table.add_row(name, value)
    console.print(table)


def _new(summary: WarmSummary) -> str:
    share = 100 * summary.new_bytes / summary.content_bytes if summary.content_bytes else 0.0
    return f"{bytes_text(summary.new_bytes)} ({share:.1f} %)"
