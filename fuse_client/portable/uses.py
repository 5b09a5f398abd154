"""What a child reads by itself, reported to the daemon in batches: for its trace, and for what is evicted last."""

from __future__ import annotations

import asyncio
from array import array

from fastpull.fuse_client.device import ChainDevice
from fastpull.fuse_client.fetch.waited import Waited
from fastpull.fuse_client.portable import frames
from fastpull.fuse_client.portable.link import DaemonLink

_FIRST_SECONDS = 0.05  # a start's first touches: their order is exact, their times by so much late


class UseReporter:
    """The ``Observer`` of a child's device. What the daemon does not hear is kept until it does, or is read again."""

    def __init__(self, link: DaemonLink) -> None:
        self._link = link
        self._device: ChainDevice | None = None
        self._touched = array("I")
        self._reads = 0  # of the device, that were reported
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, device: ChainDevice) -> None:
        self._device = device
        self._reads = 0
        device.observer = self

    def touched(self, index: int) -> None:
        self._touched.append(index)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FIRST_SECONDS, self._flush)

    def waited(self, offset: int, length: int, waited: Waited) -> None:
        """Reads that waited for the daemon are counted there."""

    def forget(self) -> None:
        """A new trace begins."""
        if self._device is not None:
            self._device.forget_touches()

    def report_all(self) -> None:
        """Report what is in use, also what was reported before. For every minute."""
        if self._device is not None:
            self._touched.extend(self._device.take_used_indexes())
            self._flush()

    def _flush(self) -> None:
        self._timer = None
        reads = self._device.reads - self._reads if self._device is not None else 0
        while self._touched or reads:
            if not self._link.report(self._touched[: frames.MAX_USED], reads):
                del self._touched[: -4 * frames.MAX_USED]  # the daemon is away: the newest are worth most
                return
            del self._touched[: frames.MAX_USED]
            self._reads += reads
            reads = 0
