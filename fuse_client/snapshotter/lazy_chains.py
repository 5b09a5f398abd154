"""Chains as the snapshotter uses them, on the daemon's event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from fastpull.cache.digest import Digest
from fastpull.cache.keyed_locks import KeyedLocks
from fastpull.cache.single_flight import SingleFlight
from fastpull.cache.tasks import Tasks
from fastpull.cache.wire import ChainState

log = logging.getLogger(__name__)

# A chain is mounted early when its image has been pulled. Which layer is an image's last one nobody tells
# us (the cri.* labels are off by default), but the next layer's Prepare follows within milliseconds
# (List, Stat, one transaction of containerd). Mounting each prefix of a 100-layer image instead would
# fetch 100 bootstraps for nothing.
QUIET_SECONDS = 0.3


class Chains(Protocol):
    """``fastpull.fuse_client.chains.Chains``."""

    async def state(self, chain_id: Digest, wait_seconds: float) -> ChainState: ...

    async def mount(self, chain_id: Digest) -> Path:
        """Idempotent; the read-only merged root of the whole chain."""
        ...

    async def unmount(self, chain_id: Digest) -> None: ...

    def path_of(self, chain_id: Digest) -> Path: ...

    def mounted(self) -> Mapping[Digest, Path]: ...


class LazyChains:
    """Mounts and unmounts of one chain exclude each other, so that a chain that is released and wanted again
    at the same moment ends up mounted. Nothing is mounted before ``allow_mounts``.

    All methods run on the loop. A failed early mount is logged only: the container's own Prepare tries again.
    A mount goes on when those who wait for it give up: the next one who asks finds it further on.
    """

    def __init__(self, chains: Chains, *, quiet_seconds: float = QUIET_SECONDS) -> None:
        self._chains = chains
        self._quiet_seconds = quiet_seconds
        self._locks: KeyedLocks[Digest] = KeyedLocks()
        self._expected: dict[Digest, asyncio.TimerHandle] = {}
        self._tasks = Tasks()
        self._mounting: SingleFlight[Digest, Path] = SingleFlight(self._tasks)
        self._allowed = asyncio.Event()

    def allow_mounts(self) -> None:
        """The daemon has taken over what an earlier one had mounted."""
        self._allowed.set()

    async def state(self, chain: Digest, wait_seconds: float) -> ChainState:
        return await self._chains.state(chain, wait_seconds)

    async def mount(self, chain: Digest) -> Path:
        self.no_longer_expect(chain)
        return await self._mounting.get(chain, lambda: self._mount(chain))

    async def release(self, chain: Digest, is_released: Callable[[], bool]) -> bool:
        """Unmount the chain if, with nobody mounting it, it is still released. Whether it was."""
        await self._allowed.wait()
        async with self._locks.alone(chain):
            if not is_released():
                return False
            self.no_longer_expect(chain)
            await self._chains.unmount(chain)
            return True

    def path_of(self, chain: Digest) -> Path:
        return self._chains.path_of(chain)

    def expect(self, chain: Digest, *, now: bool) -> None:
        """A layer was placed: mount its chain soon, unless a layer above follows."""
        self.no_longer_expect(chain)
        delay = 0.0 if now else self._quiet_seconds
        self._expected[chain] = asyncio.get_running_loop().call_later(delay, self._mount_early, chain)

    def no_longer_expect(self, chain: Digest) -> None:
        if (timer := self._expected.pop(chain, None)) is not None:
            timer.cancel()

    async def aclose(self) -> None:
        for chain in list(self._expected):
            self.no_longer_expect(chain)
        await self._tasks.aclose()

    async def _mount(self, chain: Digest) -> Path:
        await self._allowed.wait()
        async with self._locks.alone(chain):
            return await self._chains.mount(chain)

    def _mount_early(self, chain: Digest) -> None:
        del self._expected[chain]
        _ = self._tasks.spawn(self.mount(chain), name=f"mount of {chain}")
