"""From gRPC's threads into the event loop and back, with a bound on every wait."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar

from fastpull.fuse_client.errors import NodeError
from fastpull.fuse_client.snapshotter.errors import (
    SnapshotCancelledError,
    SnapshotError,
    SnapshotUnavailableError,
)

T = TypeVar("T")

# Calls that wait for a mount or the proxy hold a thread each. The rest of the pool stays free for the calls
# that are answered from memory: CRI asks Stat for every snapshot each 10 s.
MAX_WAITING = 48


class Caller(Protocol):
    """Whoever waits for the answer. ``grpc.ServicerContext`` is one."""

    def is_active(self) -> bool: ...

    def time_remaining(self) -> float | None:
        """Seconds until the answer is of no use any more; None = no limit."""
        ...

    def add_callback(self, callback: Callable[[], None]) -> bool:
        """Call back when the caller is gone; False if it is gone already."""
        ...


class Patient:
    """A caller that waits for ever: our own background work."""

    def is_active(self) -> bool:
        return True

    def time_remaining(self) -> float | None:
        return None

    def add_callback(self, callback: Callable[[], None]) -> bool:  # noqa: ARG002 - never called back
        return True


class LoopCalls:
    def __init__(self, loop: asyncio.AbstractEventLoop, *, max_waiting: int = MAX_WAITING) -> None:
        self._loop = loop
        self._waiting = threading.BoundedSemaphore(max_waiting)

    def wait_for(self, work: Callable[[], Coroutine[Any, Any, T]], what: str, *, seconds: float, caller: Caller) -> T:
        """Run ``work()`` on the loop and wait for it, at most ``seconds`` and while the caller waits.

        It is cancelled when the wait ends early. Raise ``SnapshotUnavailableError`` for that and for
        every failure of the work itself, ``SnapshotCancelledError`` when the caller is gone.
        """
        remaining = caller.time_remaining()
        limit = seconds if remaining is None else min(seconds, remaining)
        if not self._waiting.acquire(blocking=False):
            raise SnapshotUnavailableError(f"{what}: too many calls wait already; try again")
        try:
            coroutine = work()
            try:
                future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
            except RuntimeError as exc:
                coroutine.close()
                raise SnapshotUnavailableError(f"{what}: the node daemon is stopping") from exc
            if not caller.add_callback(lambda: void(future.cancel())):
                future.cancel()
            return self._result(future, what, limit)
        finally:
            self._waiting.release()

    def soon(self, work: Callable[[], None]) -> None:
        """Run ``work()`` on the loop without waiting for it; nothing, when the loop is closed."""
        try:
            self._loop.call_soon_threadsafe(work)
        except RuntimeError:
            return

    @staticmethod
    def _result(future: concurrent.futures.Future[T], what: str, limit: float) -> T:
        try:
            return future.result(limit)
        except concurrent.futures.CancelledError as exc:
            raise SnapshotCancelledError(f"{what}: nobody waits for it any more") from exc
        except TimeoutError as exc:
            future.cancel()
            raise SnapshotUnavailableError(f"{what}: not done within {limit:.1f} s; try again") from exc
        except SnapshotError:
            raise
        except NodeError as exc:
            raise SnapshotUnavailableError(f"{what}: {exc}", remedy=exc.remedy) from exc
        except Exception as exc:
            raise SnapshotUnavailableError(f"{what}: {exc!r}") from exc


def void(_: object) -> None:
    """Turn a function with a result into one without."""
