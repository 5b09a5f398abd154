"""One worker process, seen from the proxy."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Self

import msgspec

from fastpull.cache.tasks import Tasks
from fastpull.proxy.ingest.errors import WorkerDiedError, WorkerStalledError, rebuilt
from fastpull.proxy.ingest.messages import (
    LENGTH,
    MAX_FRAME_BYTES,
    Answer,
    Done,
    Failed,
    Message,
    Progress,
    Setup,
    frame,
)

log = logging.getLogger(__name__)

_END_SECONDS = 10.0
_LOOK_SECONDS = 5.0
_MODULE = "fastpull.proxy.ingest.worker"


class Call:
    """A request under way. ``answer`` gets the result, or what went wrong."""

    def __init__(self, id: int, progress: Callable[[int], None], total_bytes: int = 0) -> None:  # noqa: A002 - the message's word
        self.id = id
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._tell = progress
        self._total = total_bytes
        self._available = 0
        self._consumed = 0
        self._moved_at = asyncio.get_running_loop().time()

    def feed(self, available: int) -> None:
        """The worker has, or will have, been told of so many bytes."""
        self._available = available
        self._moved_at = asyncio.get_running_loop().time()

    def progress(self, consumed: int) -> None:
        self._consumed = consumed
        self._moved_at = asyncio.get_running_loop().time()
        self._tell(consumed)

    @property
    def remaining_bytes(self) -> int:
        """What the worker still has to read; a layer's time grows with it."""
        return self._total - self._consumed

    def stands_still(self, seconds: float) -> bool:
        """Whether the worker has had something to do for so long, and got nowhere."""
        waits_for_bytes = self._consumed >= self._available < self._total
        return not waits_for_bytes and asyncio.get_running_loop().time() - self._moved_at > seconds

    def fail(self, exc: Exception) -> None:
        if not self.answer.done():
            self.answer.set_exception(exc)


class WorkerProcess:
    """Invariant: ``_calls`` holds the requests that were sent and not answered; empty once the process is gone."""

    def __init__(self, process: asyncio.subprocess.Process, tasks: Tasks, stall_seconds: float) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._input = process.stdin
        self._output = process.stdout
        self._ids = count(1)
        self._calls: dict[int, Call] = {}
        self._is_alive = True
        self._stall_seconds = stall_seconds
        self._has_stalled = False
        self._watch = tasks.spawn(self._watch_calls(), name=f"watch worker {process.pid}")
        self._reader = tasks.spawn(self._read(), name=f"answers of worker {process.pid}")

    @classmethod
    async def start(cls, setup: Setup, tasks: Tasks, *, stall_seconds: float) -> Self:
        """``stall_seconds``: a worker that gets nowhere for so long is killed."""
        first = frame(setup)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", _MODULE, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        worker = cls(process, tasks, stall_seconds)
        worker._input.write(first)
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._is_alive

    @property
    def load(self) -> int:
        """Requests under way."""
        return len(self._calls)

    @property
    def backlog(self) -> tuple[int, int]:
        """Bytes that it still has to read for them, and the load: of two workers, the smaller one is free earlier."""
        return sum(call.remaining_bytes for call in self._calls.values()), self.load

    def call(self, request: Callable[[int], Message], progress: Callable[[int], None], *, total_bytes: int = 0) -> Call:
        """Send the request that ``request`` makes of an id. ``finish`` must follow.

        ``total_bytes``: how many it needs in all, of which ``Call.feed`` tells; 0 = it has all it needs.
        """
        call = Call(next(self._ids), progress, total_bytes)
        if self._is_alive:
            self._calls[call.id] = call
            self.send(request(call.id))
        else:
            call.fail(self._died())
        return call

    def send(self, message: Message) -> None:
        if self._is_alive:
            self._input.write(frame(message))

    def finish(self, call: Call) -> bool:
        """Forget the call. Return whether it had not been answered."""
        return self._calls.pop(call.id, None) is not None

    async def aclose(self) -> None:
        """End the process and wait for that. Unanswered calls get ``WorkerDiedError``."""
        self._input.close()  # it ends by itself when its input does
        try:
            async with asyncio.timeout(_END_SECONDS):
                await self._process.wait()
        except TimeoutError:
            log.warning("worker %d does not end; killing it", self.pid)
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        await asyncio.wait([self._reader])

    async def _watch_calls(self) -> None:
        """A worker that is stopped, or waits for something that never comes, would hold its layers for ever."""
        while self._is_alive:
            await asyncio.sleep(min(self._stall_seconds / 4, _LOOK_SECONDS))
            if any(call.stands_still(self._stall_seconds) for call in self._calls.values()):
                log.error("ingest worker %d made no progress in %.0f s; killing it", self.pid, self._stall_seconds)
                self._has_stalled = True
                with suppress(ProcessLookupError):
                    self._process.kill()
                return

    async def _read(self) -> None:
        decoder = msgspec.msgpack.Decoder(Answer)
        try:
            while True:
                (length,) = LENGTH.unpack(await self._output.readexactly(LENGTH.size))
                if length > MAX_FRAME_BYTES:
                    raise ValueError(f"a frame of {length} bytes")
                self._dispatch(decoder.decode(await self._output.readexactly(length)))
        except asyncio.IncompleteReadError:
            pass
        finally:
            self._is_alive = False
            self._watch.cancel()
            if self._process.returncode is None:
                with suppress(TimeoutError, ProcessLookupError):
                    async with asyncio.timeout(1):
                        await self._process.wait()  # for the exit status in the message
            for call in self._calls.values():
                call.fail(self._died())
            self._calls.clear()

    def _dispatch(self, answer: Answer) -> None:
        call = self._calls.get(answer.id)
        if call is None or call.answer.done():
            return  # it was cancelled
        match answer:
            case Progress():
                call.progress(answer.consumed)
            case Done():
                call.answer.set_result(answer.result)
            case Failed():
                call.fail(rebuilt(answer))

    def _died(self) -> WorkerDiedError:
        if self._has_stalled:
            return WorkerStalledError(
                f"ingest worker {self.pid} made no progress in {self._stall_seconds:g} s and was killed; "
                "a slow disk may need a larger ingest.stall_seconds"
            )
        status = self._process.returncode
        how = f"by signal {-status}" if status is not None and status < 0 else f"with status {status}"
        return WorkerDiedError(f"ingest worker {self.pid} ended {how}; try again, and look for the kernel's OOM killer")
