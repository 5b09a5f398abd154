"""A daemon that serves files as devices, and nothing else: to be killed by tests.

    python -P session_daemon.py RUN_DIR (local|remote|stuck) (resend|journal) NAME=FILE ...

``local`` answers at once, out of memory that is used again, ``remote`` after some milliseconds, ``stuck`` never.
``journal``: as on a kernel that can not send requests again. SIGTERM hands over.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import uvloop

from fastpull.cache.scratch import Scratch
from fastpull.fuse_client.session.channel import Channel
from fastpull.fuse_client.session.files import Buffers
from fastpull.fuse_client.session.keeper import find_keeper
from fastpull.fuse_client.session.server import FuseSession
from fastpull.fuse_client.session.takeover import DevicesMount


class FileDevice:
    def __init__(self, path: Path, mode: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)
        self._scratch = Scratch()
        self._mode = mode

    @property
    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def try_read(self, offset: int, length: int, reply: Callable[[Buffers], None]) -> bool:
        if self._mode == "local":
            room = self._scratch.take(length)
            os.preadv(self._descriptor, [room[:length]], offset)
            reply((room[:length],))
            self._scratch.give_back(room)
        return self._mode == "local"

    async def read(self, offset: int, length: int) -> Buffers:
        await asyncio.sleep(1e6 if self._mode == "stuck" else random.uniform(0, 0.01))
        return (os.pread(self._descriptor, length, offset),)


async def main(run_dir: Path, mode: str, recovery: str, *devices: str) -> None:
    if recovery == "journal":
        Channel._request_resend = lambda self: False  # type: ignore[method-assign]
    mount = await asyncio.to_thread(DevicesMount.open, run_dir, lambda path: find_keeper(path, {}))
    session = FuseSession(mount.descriptor(), resumed=mount.resumed)
    session.start()  # before the devices are known: requests have to wait for them
    await asyncio.sleep(0.05)
    for device in devices:
        name, _, path = device.partition("=")
        session.add(name, FileDevice(Path(path), mode))
    session.settle()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    print(f"ready pid={os.getpid()} resumed={mount.resumed} lost={mount.lost}", flush=True)
    await stop.wait()
    await session.aclose(hand_over=True)
    mount.close()


if __name__ == "__main__":
    uvloop.run(main(Path(sys.argv[1]), *sys.argv[2:]))
