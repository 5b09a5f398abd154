"""What the fetcher counts. Plain numbers; ``metrics.py`` publishes them when somebody asks."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastpull.fuse_client.fetch.queue import Lane


@dataclass(slots=True)
class FetchCounters:
    """Since the daemon started."""

    requests: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))
    chunks: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))
    bytes_received: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))  # as sent, compressed
    bytes_content: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))
    retries: int = 0  # batches that ended before their last chunk
    corrupt_chunks: int = 0  # received, wrong bytes
    missing_chunks: int = 0  # the proxy did not have them
    failed_reads: int = 0  # gave up after fetch.retry_seconds
    uncached_chunks: int = 0
    store_failures: int = 0
    waits: int = 0  # reads that had to wait
    waited_seconds: float = 0.0
