"""The child's connection to the daemon, which may be away for a while."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fastpull.cache.digest import Digest
from fastpull.fuse_client.portable import frames
from fastpull.fuse_client.portable.errors import DaemonAwayError, FrameError, ReadRefusedError
from fastpull.fuse_client.portable.frames import Head, Kind

log = logging.getLogger(__name__)

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 1.0
_HELLO_SECONDS = 10.0
_BUFFER_BYTES = 2 * frames.MAX_READ


@dataclass(slots=True)
class _Waiting:
    offset: int
    length: int
    done: asyncio.Future[bytes]

    def frame(self, id_: int) -> bytes:
        return frames.pack_head(Kind.READ, self.length, id_, self.offset)


class DaemonLink:
    """Asks the daemon for bytes. ``run`` keeps the connection, and renews it for ever.

    What waits when a connection ends is asked again on the next one: a daemon that is killed costs time, no
    read. Each read waits ``wait_seconds`` at most, whatever the daemon does.
    """

    def __init__(
        self, path: Path, chain: Digest, *, wait_seconds: float, on_again: Callable[[], None] = lambda: None
    ) -> None:
        self._path = path
        self._chain = chain
        self._wait_seconds = wait_seconds
        self.on_again = on_again
        self._waiting: dict[int, _Waiting] = {}
        self._ids = itertools.count(1)
        self._writer: asyncio.StreamWriter | None = None
        self._places = asyncio.Semaphore(frames.MAX_WAITING)

    @property
    def is_waiting(self) -> bool:
        """Whether an answer of the daemon is awaited."""
        return bool(self._waiting)

    @property
    def is_up(self) -> bool:
        return self._writer is not None

    async def read(self, offset: int, length: int) -> bytes:
        """Exactly ``length`` bytes, at most ``frames.MAX_READ``. Raise ``ReadRefusedError``, ``DaemonAwayError``."""
        id_ = next(self._ids)
        try:
            async with asyncio.timeout(self._wait_seconds), self._places:
                waiting = _Waiting(offset, length, asyncio.get_running_loop().create_future())
                self._waiting[id_] = waiting
                if self._writer is not None:
                    self._writer.write(waiting.frame(id_))
                return await waiting.done
        except TimeoutError:
            raise DaemonAwayError(self._wait_seconds) from None
        finally:
            self._waiting.pop(id_, None)

    def report(self, chunks: Sequence[int], reads: int) -> bool:
        """Tell which chunks were used. False = nobody is there to be told."""
        if self._writer is None:
            return False
        self._writer.write(frames.pack_used(chunks, reads))
        return True

    async def run(self) -> None:
        """Never returns."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            try:
                async with self._connected() as reader:
                    pause = _FIRST_PAUSE_SECONDS
                    await self._receive(reader)
            except (OSError, EOFError, TimeoutError, FrameError) as exc:
                log.debug("no connection to the daemon at %s: %s", self._path, exc)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[asyncio.StreamReader]:
        async with asyncio.timeout(_HELLO_SECONDS):
            reader, writer = await asyncio.open_unix_connection(self._path, limit=_BUFFER_BYTES)
        try:
            writer.write(frames.pack_hello(self._chain))
            async with asyncio.timeout(_HELLO_SECONDS):
                answer = await reader.readexactly(frames.ANSWER_BYTES)
            if not frames.unpack_answer(answer):
                raise FrameError("the daemon does not serve this chain")
            for id_, waiting in self._waiting.items():
                writer.write(waiting.frame(id_))
            self._writer = writer
            yield reader
        finally:
            self._writer = None
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _receive(self, reader: asyncio.StreamReader) -> None:
        """Until the daemon hangs up, or says what it should not."""
        while True:
            head = frames.unpack_head(await reader.readexactly(frames.HEAD_BYTES), from_child=False)
            body = await reader.readexactly(head.body_bytes) if head.body_bytes else b""
            if head.kind is Kind.AGAIN:
                self.on_again()
            else:
                self._answer(head, body)

    def _answer(self, head: Head, body: bytes) -> None:
        waiting = self._waiting.get(head.id)
        if waiting is None or waiting.done.done():
            return  # it has waited too long
        if head.kind is Kind.FAILED:
            waiting.done.set_exception(ReadRefusedError(head.number, waiting.offset, waiting.length))
        elif len(body) != waiting.length:
            raise FrameError(f"{len(body)} bytes as the answer to a read of {waiting.length}")
        else:
            waiting.done.set_result(body)
