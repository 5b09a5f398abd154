"""Traces on their way to the proxy, on disk until it has taken them."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from fastpull.cache.tasks import Tasks
from fastpull.cache.wire import Trace
from fastpull.fuse_client.errors import ProxyAnswerError, ProxyError

log = logging.getLogger(__name__)

MAX_FILES = 200  # about 1 MB each at most; the oldest go first
RETRY_SECONDS = 30.0


class TraceSpool:
    """Keeps traces in ``directory`` (one JSON file each, named by time) and sends them, oldest first.

    A trace that the proxy refuses (of a chain that it has forgotten) is dropped.
    """

    def __init__(self, directory: Path, send: Callable[[Trace], Awaitable[None]], tasks: Tasks) -> None:
        self._directory = directory
        self._send = send
        self._tasks = tasks
        self._numbers = itertools.count()
        self._news = asyncio.Event()

    def start(self) -> None:
        """Begin to send, what an earlier run left first."""
        self._directory.mkdir(parents=True, exist_ok=True)
        self._news.set()
        _ = self._tasks.spawn(self._work(), name="send traces")

    def add(self, trace: Trace) -> None:
        """Keep a trace. A disk that can not take it costs the trace, nothing else."""
        name = f"{time.time_ns():020d}-{os.getpid()}-{next(self._numbers)}.json"
        partial = self._directory / f".{name}"
        try:
            partial.write_bytes(msgspec.json.encode(trace))
            partial.rename(self._directory / name)
            for old in self.files()[:-MAX_FILES]:
                old.unlink(missing_ok=True)
        except OSError as exc:
            log.warning("a trace of %s is lost: %s", trace.chain_id, exc)
        self._news.set()

    def files(self) -> list[Path]:
        """What waits to be sent, oldest first."""
        return sorted(self._directory.glob("[0-9]*.json"))

    def wake(self) -> None:
        """Try again now: a proxy is back."""
        self._news.set()

    async def _work(self) -> None:
        while True:
            try:
                async with asyncio.timeout(RETRY_SECONDS if self.files() else None):
                    await self._news.wait()
            except TimeoutError:
                pass
            self._news.clear()
            try:
                for file in self.files():
                    await self._send_one(file)
            except ProxyError as exc:
                log.info("traces wait for the proxy: %s", exc)

    async def _send_one(self, file: Path) -> None:
        try:
            trace = msgspec.json.decode(file.read_bytes(), type=Trace)
            await self._send(trace)
        except (OSError, msgspec.DecodeError) as exc:
            log.warning("%s is no trace: %s", file, exc)
        except ProxyAnswerError as exc:
            if exc.status >= 500 or exc.status in (408, 429):
                raise
            log.warning("the proxy refuses a trace: %s", exc)
        file.unlink(missing_ok=True)
