"""pyfuse3's session: the mount, the loop that answers it, and what keeps the two from waiting for each other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import select
import signal
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from fastpull.fuse_client.drivers.errors import MountError
from fastpull.fuse_client.drivers.mounts import mounts_at
from fastpull.fuse_client.portable.children import SUBTYPE
from fastpull.fuse_client.portable.library import pyfuse3
from fastpull.fuse_client.portable.operations import TreeOperations
from fastpull.fuse_client.portable.worker_lock import WorkerLock

log = logging.getLogger(__name__)

# Requests in progress, most of which would be reads that wait for the network. Also the least number of worker tasks:
# pyfuse3 ends workers beyond that as soon as they are idle, and (3.5) never forgets the ended ones.
_WORKERS = 64

# Sequential reads with all in the page cache: 1.6 s/GB with the kernel's 128, 0.8 with 512, 1.1 with 1024; and a page
# fault of what is not local must not fetch more.
_READAHEAD_KIB = 512
_BDI = Path("/sys/class/bdi")
_CONNECTIONS = Path("/sys/fs/fuse/connections")
_MAX_BACKGROUND = 48  # readahead in flight; the kernel's 12 let a few misses keep all others from reading ahead

_LONGEST_READ_SECONDS = 0.5  # of /dev/fuse; see _never_stuck
_INLINE_REQUESTS = 64  # answered one after the other before others on the event loop have their turn
_LINGER_SECONDS = 0.0002  # for a next request, as long as nobody waits for anything else; asleep, not spinning


@contextlib.asynccontextmanager
async def mounted(
    operations: TreeOperations, target: Path, token: str, *, is_waiting: Callable[[], bool] = lambda: False
) -> AsyncIterator[Callable[[], Coroutine[Any, Any, None]]]:
    """Mount, and give the coroutine function that answers until the mount is gone. Raise ``MountError``.

    ``token`` is the mount's source in ``/proc/self/mountinfo``. At the end nothing is unmounted: what lies on
    ``target`` by then may be another mount. ``is_waiting``: the event loop should soon hear of something else.
    """
    pyfuse3.asyncio.enable()
    pyfuse3.asyncio.Lock = WorkerLock  # type: ignore[assignment]  # as far as its workers use one
    options = {"ro", "suid", "dev", "allow_other", "default_permissions"}
    # No max_read: libfuse wants it said in INIT too, which pyfuse3 does not offer. Reads are of up to 1 MiB anyway.
    options |= {f"fsname={token}", f"subtype={SUBTYPE}"}
    try:
        pyfuse3.init(operations, str(target), options)
    except RuntimeError as exc:
        raise MountError("mount fuse on", target, 0, str(exc), remedy="its log says more") from exc
    try:
        yield partial(_answer, is_waiting)
    finally:
        pyfuse3.close(unmount=False)


async def _answer(is_waiting: Callable[[], bool]) -> None:
    with _never_stuck(), _quick_waits(is_waiting):
        await pyfuse3.main(min_tasks=_WORKERS, max_tasks=_WORKERS)


def tune(target: Path) -> None:
    """Best effort: without, all works in smaller pieces. After the first answer: INIT sets the kernel's defaults."""
    found = mounts_at(target)
    if not found:
        return
    device = found[-1].device
    for path, value in (
        (_BDI / device / "read_ahead_kb", _READAHEAD_KIB),
        (_CONNECTIONS / device.partition(":")[2] / "max_background", _MAX_BACKGROUND),
        (_CONNECTIONS / device.partition(":")[2] / "congestion_threshold", _MAX_BACKGROUND * 3 // 4),
    ):
        with contextlib.suppress(OSError):
            path.write_text(str(value))


@contextlib.contextmanager
def _never_stuck() -> Iterator[None]:
    """Interrupt system calls twice a second.

    pyfuse3 waits until ``/dev/fuse`` is readable and then reads, holding the GIL. A caller that is killed in
    between takes its request back, and the read sleeps until the next request: nobody else is answered meanwhile,
    not even those whose bytes have come. Interrupted, pyfuse3 waits again.
    """
    before = signal.signal(signal.SIGALRM, lambda _number, _frame: None)
    signal.setitimer(signal.ITIMER_REAL, _LONGEST_READ_SECONDS, _LONGEST_READ_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _quick_waits(is_waiting: Callable[[], bool]) -> Iterator[None]:
    """Look for the next request a moment before asking the event loop to wait for one.

    A caller that walks a tree has its next request ready some 50 us after each answer. pyfuse3's own wait goes through
    epoll_ctl twice, and the loop once, for each. Measured with `find -ls` of 15,800 entries (9,700 requests): 0.74 s
    and 0.50 s of CPU, instead of 1.05 s and 0.78 (with uvloop; 1.10 and 0.86 without).

    The loop watches an epoll descriptor in front of ``/dev/fuse``: uvloop makes what it watches non-blocking, and
    pyfuse3 takes EAGAIN for the end of a worker.
    """
    wait = pyfuse3.asyncio.wait_readable
    look = select.select  # unlike poll, it knows microseconds
    watched = -1
    inline = 0

    with select.epoll() as epoll:

        async def wait_readable(fd: int) -> None:
            nonlocal watched, inline
            if fd != watched:
                epoll.register(fd, select.EPOLLIN)
                watched = fd
            if look((fd,), (), (), 0.0 if is_waiting() else _LINGER_SECONDS)[0]:
                inline += 1
                if inline % _INLINE_REQUESTS:
                    return
                await asyncio.sleep(0)
                if epoll.poll(0, 1):
                    return
            await wait(epoll.fileno())

        pyfuse3.asyncio.wait_readable = wait_readable
        try:
            yield
        finally:
            pyfuse3.asyncio.wait_readable = wait
