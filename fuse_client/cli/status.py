"""``fastpull-node status``: how the daemon is."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import msgspec

from fastpull.config.node import NodeSettings
from fastpull.fuse_client.cli.connection import DaemonConnection
from fastpull.fuse_client.drivers.probe import KernelFeatures
from fastpull.fuse_client.status import ChainStatus, NodeStatus


def status(settings: NodeSettings, *, as_json: bool) -> int:
    """Run the command; return the exit code."""
    report = DaemonConnection(settings.run_dir).status(local=True)
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report)).decode() + "\n")
    else:
        sys.stdout.writelines(line + "\n" for line in status_lines(report))
    return 0


def status_lines(report: NodeStatus) -> Iterator[str]:
    """The report for people. Pure."""
    yield f"fastpull-node {report.version}, pid {report.pid}"
    yield f"driver:      {report.driver} ({report.driver_reason})"
    if report.portable.processes or report.portable.deaths:
        died = f", {report.portable.deaths} DIED" if report.portable.deaths else ""
        yield f"processes:   {report.portable.processes} of the portable driver, one for each mount{died}"
    yield f"kernel:      {_kernel(report.kernel)}"
    kept = report.holder if report.holder_is_up else f"nobody: {report.holder} is gone"
    yield f"mounts kept: by {kept}"
    yield f"snapshotter: {report.snapshotter or 'not served'}"
    yield f"data:        {report.root}"
    for proxy in report.proxies:
        yield f"proxy:       {proxy.url} {'up' if proxy.is_up else f'DOWN: {proxy.last_error}'}"
    cache = report.cache
    yield (
        f"cache:       {bytes_text(cache.live_bytes)} of {bytes_text(cache.quota_bytes)}, {cache.chunks:,} chunks"
        + (f"; NOT STORING: {cache.failure}" if cache.failure else "")
    )
    fetch = report.fetch
    yield (
        f"fetched:     {bytes_text(fetch.content_bytes)} ({bytes_text(fetch.received_bytes)} on the wire) in "
        f"{fetch.requests:,} requests, {fetch.retries} retried, {fetch.queued_chunks} chunks queued"
    )
    yield f"waited:      {fetch.waited_seconds:.1f} s in all reads, {fetch.failed_reads} failed"
    yield f"chains:      {len(report.chains)}"
    for chain in report.chains:
        yield f"  {chain.chain_id[7:19]}  {_chain(chain)}"


def _chain(chain: ChainStatus) -> str:
    share = 100 * chain.local_bytes // max(chain.content_bytes, 1)
    return (
        f"{bytes_text(chain.local_bytes)} of {bytes_text(chain.content_bytes)} here ({share} %), plan of "
        f"{chain.planned_chunks} chunks, for {', '.join(chain.users) or 'nobody'}"
    )


def _kernel(kernel: KernelFeatures) -> str:
    having = [
        f"FUSE 7.{kernel.fuse_minor}" if kernel.fuse_minor else f"no FUSE ({kernel.fuse_problem})",
        "resend" if kernel.fuse_resend else "no resend: open reads are kept for the next daemon",
        "EROFS from files" if kernel.erofs_file_backed else "no EROFS from files",
        *(["directio"] if kernel.erofs_directio else []),
        *(["EROFS from loop devices"] if kernel.erofs_loop else []),
    ]
    return f"Linux {kernel.release}: {', '.join(having)}"


def bytes_text(count: float) -> str:
    """``1536`` → ``1.5 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")
