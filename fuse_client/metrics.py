"""What Prometheus sees of a node. The numbers live where they are counted; here they are read when asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from fastpull.fuse_client.fetch.counters import FetchCounters
from fastpull.fuse_client.fetch.queue import Lane
from fastpull.fuse_client.status import NodeStatus

PREFIX = "fastpull_node_"


class NodeCollector(Collector):
    """Turns counters and a status into metrics at each scrape."""

    def __init__(self, counters: FetchCounters, status: Callable[[], NodeStatus]) -> None:
        self._counters = counters
        self._status = status

    def collect(self) -> Iterator[Metric]:
        yield from self._fetching()
        yield from self._state(self._status())

    def _fetching(self) -> Iterator[Metric]:
        counters = self._counters
        for name, text, values in (
            ("fetch_requests", "Requests for chunks", counters.requests),
            ("fetch_chunks", "Chunks received", counters.chunks),
            ("fetch_received_bytes", "Bytes of chunks as sent", counters.bytes_received),
            ("fetch_content_bytes", "Bytes of chunks, uncompressed", counters.bytes_content),
        ):
            family = CounterMetricFamily(PREFIX + name, text, labels=["lane"])
            for lane in Lane:
                family.add_metric([lane.name.lower()], values[lane])
            yield family
        for name, text, value in (
            ("fetch_retries", "Requests that ended before their last chunk", counters.retries),
            ("fetch_corrupt_chunks", "Received chunks with wrong bytes", counters.corrupt_chunks),
            ("fetch_missing_chunks", "Chunks that the proxy did not have", counters.missing_chunks),
            ("failed_reads", "Reads that failed because a chunk could not be fetched in time", counters.failed_reads),
            ("waited_reads", "Reads that waited for the proxy", counters.waits),
            ("waited_seconds", "Seconds that reads waited for the proxy", counters.waited_seconds),
            ("uncached_chunks", "Chunks that the node cache did not take", counters.uncached_chunks),
            ("store_failures", "Writes that the node cache refused", counters.store_failures),
        ):
            yield CounterMetricFamily(PREFIX + name, text, value=value)

    @staticmethod
    def _state(status: NodeStatus) -> Iterator[Metric]:
        up = GaugeMetricFamily(PREFIX + "proxy_up", "Whether a proxy answers", labels=["url"])
        for proxy in status.proxies:
            up.add_metric([proxy.url], float(proxy.is_up))
        yield up
        info = GaugeMetricFamily(PREFIX + "info", "Version and driver", labels=["version", "driver"])
        info.add_metric([status.version, status.driver], 1.0)
        yield info
        driver = GaugeMetricFamily(PREFIX + "driver", "The driver for new mounts, and why", labels=["driver", "reason"])
        driver.add_metric([status.driver, status.driver_reason], 1.0)
        yield driver
        portable = status.portable
        yield GaugeMetricFamily(PREFIX + "portable_mounts", "Mounts of the portable driver", value=portable.processes)
        yield CounterMetricFamily(
            PREFIX + "portable_deaths", "Processes of such mounts that died", value=portable.deaths
        )
        yield GaugeMetricFamily(PREFIX + "chains", "Mounted chains", value=len(status.chains))
        for name, text, value in (
            ("reads", "Reads of mounted chains", sum(chain.reads for chain in status.chains)),
            ("missed_reads", "Reads that found a chunk missing", sum(chain.misses for chain in status.chains)),
            ("damaged_chunks", "Chunks found damaged on this node", sum(chain.damaged for chain in status.chains)),
        ):
            yield GaugeMetricFamily(PREFIX + name, text + " that are mounted now", value=value)
        cache = status.cache
        yield GaugeMetricFamily(PREFIX + "cache_bytes", "Bytes of chunks in the node cache", value=cache.live_bytes)
        yield GaugeMetricFamily(
            PREFIX + "cache_failing", "Whether chunks are not stored now", value=float(bool(cache.failure))
        )
        yield GaugeMetricFamily(PREFIX + "cache_file_bytes", "Disk used by the node cache", value=cache.file_bytes)
        yield GaugeMetricFamily(PREFIX + "cache_quota_bytes", "Limit of the node cache", value=cache.quota_bytes)
        yield GaugeMetricFamily(
            PREFIX + "holder_up", "Whether the FUSE mount is kept", value=float(status.holder_is_up)
        )


class Metrics:
    """A registry of its own, so that several nodes can live in one process."""

    def __init__(self, collector: NodeCollector) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(collector)

    def text(self) -> bytes:
        """The exposition format, version 0.0.4."""
        return generate_latest(self._registry)
