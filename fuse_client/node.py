"""A running node: its parts, and what the program and the metrics ask of the whole."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fastpull.cache.errors import CacheError
from fastpull.cache.scrub import Scrubs
from fastpull.cache.store import ChunkStore
from fastpull.cache.tasks import Tasks
from fastpull.cache.writer import Writer
from fastpull.config.node import NodeSettings
from fastpull.fuse_client.chains import CONTAINERD, Chains
from fastpull.fuse_client.device import ChainDevice
from fastpull.fuse_client.drivers.portable import PortableDriver
from fastpull.fuse_client.drivers.probe import KernelFeatures
from fastpull.fuse_client.errors import ChainInUseError
from fastpull.fuse_client.fetch.client import ProxyClient
from fastpull.fuse_client.fetch.fetcher import Fetcher
from fastpull.fuse_client.fetch.keeper import Keeper
from fastpull.fuse_client.fetch.queue import FetchQueue
from fastpull.fuse_client.prefetch import Prefetcher
from fastpull.fuse_client.session.errors import KeeperError
from fastpull.fuse_client.session.keeper import find_keeper
from fastpull.fuse_client.session.server import FuseSession
from fastpull.fuse_client.session.takeover import DevicesMount
from fastpull.fuse_client.status import (
    CacheStatus,
    ChainStatus,
    FetchStatus,
    NodeStatus,
    PortableStatus,
    ProxyStatus,
    version,
)
from fastpull.fuse_client.trace_spool import TraceSpool
from fastpull.fuse_client.tracer import Tracer

log = logging.getLogger(__name__)

FLUSH_SECONDS = 5.0
FLUSHES_PER_SYNC = 10  # a power loss costs what was fetched since: it is fetched again
FLUSHES_PER_LOOK = 12  # a look at which chunks were used costs 1 ms for each chain
RETRY_HOLDER_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Everything that ``daemon.open_node`` built, for those who look at it or end it."""

    settings: NodeSettings
    features: KernelFeatures
    driver_name: str
    driver_reason: str
    portable: PortableDriver
    store: ChunkStore
    writer: Writer
    client: ProxyClient
    queue: FetchQueue
    keeper: Keeper
    fetcher: Fetcher
    prefetcher: Prefetcher
    tracer: Tracer
    spool: TraceSpool
    mount: DevicesMount
    session: FuseSession
    chains: Chains
    scrubs: Scrubs
    tasks: Tasks
    snapshotter_socket: Path | None = None
    store_failure: str = ""  # why it is only in memory
    holder_gone: asyncio.Event = field(default_factory=asyncio.Event)

    # -- looking -------------------------------------------------------------------------------------

    def status(self, *, local: Sequence[tuple[int, int]] = ()) -> NodeStatus:
        """How the node is. ``local`` is what ``count_local`` gave, where wanted."""
        devices = self.chains.devices()
        counted = local if len(local) == len(devices) else [(-1, -1)] * len(devices)
        store = self.store.stats()
        counters = self.fetcher.counters
        return NodeStatus(
            version=version(),
            pid=os.getpid(),
            root=str(self.settings.root),
            driver=self.driver_name,
            driver_reason=self.driver_reason,
            portable=PortableStatus(processes=self.portable.serving, deaths=self.portable.deaths),
            kernel=self.features,
            holder=self.mount.keeper.description,
            holder_is_up=not self.holder_gone.is_set(),
            snapshotter=str(self.snapshotter_socket or ""),
            chains=tuple(self._chain(device, *there) for device, there in zip(devices, counted, strict=True)),
            cache=CacheStatus(
                chunks=store.chunks,
                live_bytes=store.live_bytes,
                file_bytes=store.file_bytes,
                quota_bytes=int(store.quota_bytes),
                failure=self.store_failure or self.keeper.failure,
            ),
            proxies=tuple(
                ProxyStatus(url=proxy.url, is_up=proxy.is_up, last_error=proxy.last_error)
                for proxy in self.client.endpoints.all
            ),
            fetch=FetchStatus(
                queued_chunks=len(self.queue),
                requests=sum(counters.requests.values()),
                received_bytes=sum(counters.bytes_received.values()),
                content_bytes=sum(counters.bytes_content.values()),
                retries=counters.retries,
                failed_reads=counters.failed_reads,
                waited_seconds=round(counters.waited_seconds, 3),
            ),
            traces_waiting=len(self.spool.files()),
        )

    async def count_local(self) -> list[tuple[int, int]]:
        """Chunks and bytes in the node cache, for each device."""
        return [await asyncio.to_thread(device.local) for device in self.chains.devices()]

    def _chain(self, device: ChainDevice, local_chunks: int, local_bytes: int) -> ChainStatus:
        state = self.chains.record_state(device.chain)
        return ChainStatus(
            chain_id=str(device.chain),
            path=str(self.chains.path_of(device.chain)),
            users=self.chains.users(device.chain),
            chunks=len(device.map),
            content_bytes=state.content_bytes if state else 0,
            local_chunks=local_chunks,
            local_bytes=local_bytes,
            planned_chunks=self.prefetcher.planned.get(device.chain, 0),
            reads=device.reads,
            misses=device.misses,
            damaged=device.damaged,
        )

    # -- running -------------------------------------------------------------------------------------

    async def housekeeping(self) -> None:
        """For ever: tell the store what is used, so that it evicts the rest first."""
        for turn in itertools.count(1):
            await asyncio.sleep(FLUSH_SECONDS)
            if turn % FLUSHES_PER_LOOK == 0:
                for device in self.chains.devices():
                    self.store.touch(device.take_used())
            try:
                self.store.release_resident()
                await self.writer.run(self.store.flush)
                if turn % FLUSHES_PER_SYNC == 0:
                    # Not on the writer's thread: what is fetched meanwhile goes on being stored.
                    await asyncio.to_thread(self.store.sync)
            except (CacheError, OSError) as exc:
                log.warning("the node cache can not be tidied up: %s; its chunks are checked again", exc)
                for device in self.chains.devices():
                    # What was written and read once may not be on the disk, where the next look will find old bytes.
                    device.distrust()

    async def watch_holder(self) -> None:
        """For ever: when the process that keeps the FUSE mount is gone, start another and give it a copy."""
        while True:
            await self.mount.keeper.lost()
            self.holder_gone.set()
            log.error("%s is gone; until there is another one, this daemon must not end", self.mount.keeper.description)
            try:
                self.mount.keep_again(await asyncio.to_thread(find_keeper, self.settings.run_dir, os.environ))
            except KeeperError as exc:
                log.error("there is no holder: %s", exc)  # noqa: TRY400 - the message says all
                await asyncio.sleep(RETRY_HOLDER_SECONDS)
            else:
                self.holder_gone.clear()
                log.warning("the FUSE mount is kept by %s now", self.mount.keeper.description)

    # -- ending --------------------------------------------------------------------------------------

    def users_of_mounts(self) -> dict[str, list[str]]:
        """Who uses which chain."""
        return {str(chain): list(self.chains.users(chain)) for chain in self.chains.mounted()}

    async def unmount_all(self, *, force: bool) -> None:
        """Unmount every chain, keeping what is on disk. Raise ``ChainInUseError`` unless forced."""
        for chain in self.chains.mounted():
            if CONTAINERD in self.chains.users(chain) and not force:
                raise ChainInUseError(
                    chain,
                    "containerd has images that stand on it",
                    remedy="remove its containers first, use --keep-mounts to restart only, or --force",
                )
        await self.chains.suspend()


def node_name() -> str:
    """Which node a trace comes from."""
    return os.uname().nodename
