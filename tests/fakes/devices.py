"""Devices that behave as a test says."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence

from fastpull.fuse_client.session.files import Buffers, DeviceReadError


def pattern(size: int, seed: str = "") -> bytes:
    """Bytes of which no two blocks are alike, the same in every process."""
    return hashlib.shake_128(seed.encode()).digest(size)


class MemoryDevice:
    """``data``, all of it local."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = memoryview(data)
        self.reads = 0

    @property
    def size(self) -> int:
        return len(self._data)

    def try_read(self, offset: int, length: int, reply: Callable[[Buffers], None]) -> bool:
        self.reads += 1
        reply((self._data[offset : offset + length],))
        return True

    async def read(self, offset: int, length: int) -> Buffers:
        raise AssertionError("everything is local")


class RemoteDevice:
    """``data``, of which nothing is local. ``fetch`` may wait, or raise what a fetcher would.

    ``gate`` holds every read until it is set; ``asked`` counts the reads that have begun.
    """

    def __init__(
        self, data: bytes | memoryview, *, broken: Sequence[range] = (), gate: asyncio.Event | None = None
    ) -> None:
        self._data = memoryview(data)
        self._broken = broken
        self._gate = gate
        self.asked = 0

    @property
    def size(self) -> int:
        return len(self._data)

    def try_read(self, offset: int, length: int, reply: Callable[[Buffers], None]) -> bool:
        return False

    async def read(self, offset: int, length: int) -> Buffers:
        self.asked += 1
        if self._gate is not None:
            await self._gate.wait()
        else:
            await asyncio.sleep(0)
        if any(offset < part.stop and part.start < offset + length for part in self._broken):
            raise DeviceReadError(f"{length} bytes at {offset} are broken on purpose")
        middle = offset + length // 2
        return (bytes(self._data[offset:middle]), self._data[middle : offset + length])
