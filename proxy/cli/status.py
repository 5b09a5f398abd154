"""``fastpull-proxy status`` and ``images``: what the running proxy holds and does."""

from __future__ import annotations

import sys
import time

import msgspec
from rich.console import Console
from rich.table import Table

from fastpull.cache.wire import Message
from fastpull.proxy.api.messages import FillStatus, ImageList, StatusReport, StoreStatus
from fastpull.proxy.cli.amounts import bytes_text, seconds_text, short
from fastpull.proxy.cli.connection import ProxyConnection


def status(proxy: ProxyConnection, *, as_json: bool) -> int:
    report = proxy.get("/v1/status", StatusReport)
    if as_json:
        write_json(report)
    else:
        sys.stdout.write("\n".join(status_lines(report, proxy.url)) + "\n")
    return 0


def status_lines(report: StatusReport, url: str) -> list[str]:
    """The report for people. Pure."""
    lines = [
        f"fastpull-proxy {report.version} at {url}, up {seconds_text(report.seconds)}",
        f"state:      {'ready' if report.ready else 'not ready: ' + report.problem}",
        f"data:       {report.data_dir}",
        f"images:     {report.images}",
        f"chunks:     {_store(report.chunks)}",
        f"blobs:      {_store(report.blobs)}",
    ]
    lines += map(_fill, report.fills)
    lines += [
        f"ingesting:  {short(layer.digest)} {bytes_text(layer.indexed_bytes)} of {bytes_text(layer.blob_bytes)}"
        for layer in report.ingests
    ]
    return [*lines, *(f"failed:     {short(layer.digest)} {layer.error}" for layer in report.failed)]


def images(proxy: ProxyConnection, *, as_json: bool) -> int:
    """List the images that the proxy knows, the latest first."""
    known = proxy.get("/v1/images", ImageList)
    if as_json:
        write_json(known)
        return 0
    table = Table(box=None, pad_edge=False)
    for name in ("image", "platform", "state", "layers", "compressed", "seen", "chain"):
        table.add_column(name, no_wrap=True)
    for image in known.images:
        table.add_row(
            image.names[0] if image.names else short(image.manifest_digest),
            image.platform,
            image.state,
            str(image.layers),
            bytes_text(image.blob_bytes),
            f"{seconds_text(max(0.0, time.time() - image.seen_at))} ago",
            short(image.chain_id),
        )
    console = Console() if sys.stdout.isatty() else Console(width=200)
    console.print(table)
    return 0


def write_json(message: Message) -> None:
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(message)).decode() + "\n")


def _fill(fill: FillStatus) -> str:
    size = "?" if fill.size is None else bytes_text(fill.size)
    readers = f"{fill.readers} reader{'' if fill.readers == 1 else 's'}"
    return (
        f"filling:    {short(fill.digest)} {bytes_text(fill.bytes)} of {size}, {readers}, "
        f"{seconds_text(fill.seconds)}, from {fill.upstream}/{fill.repository}"
    )


def _store(store: StoreStatus) -> str:
    entries = f"{store.entries:,} entries, " if store.entries is not None else ""
    return (
        f"{entries}{bytes_text(store.live_bytes)} of {bytes_text(store.quota_bytes)} "
        f"({bytes_text(store.file_bytes)} on disk)"
    )
