"""The leader's side: it starts the followers, hears their reports, starts again who dies, and ends them all."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from contextlib import suppress
from types import TracebackType
from typing import Self

import msgspec
from aiohttp import web

from fastpull.cache.errors import CacheError
from fastpull.cache.tasks import Tasks
from fastpull.config.proxy import ListenSettings, ProxySettings
from fastpull.proxy import metrics
from fastpull.proxy.listening import SHUTDOWN_SECONDS
from fastpull.proxy.references import canonical_upstream
from fastpull.proxy.services import SERVICES
from fastpull.proxy.workers import door, reports
from fastpull.proxy.workers.messages import LENGTH, MAX_FRAME_BYTES, Report, Setup, frame
from fastpull.proxy.workers.restarts import Restarts

log = logging.getLogger(__name__)

_MODULE = "fastpull.proxy.workers.follower"
_END_SECONDS = SHUTDOWN_SECONDS + 5.0
_BACKLOG = 4096
# Credentials may stand in the environment of the leader. Followers need none, so they get none.
_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "PYTHONPATH", "PYTHONHASHSEED", "LD_LIBRARY_PATH")
_MAX_PROCESSES = 64


def process_count(listen: ListenSettings) -> int:
    """How many processes serve, the leader among them."""
    return listen.workers or min(_MAX_PROCESSES, len(os.sched_getaffinity(0)))


class Followers:
    """``count`` further serving processes. An async context manager; leaving it ends them.

    Each is kept alive by a task of its own. A follower holds no state that matters: one that dies takes its
    connections and its last second of counters with it.
    """

    def __init__(self, settings: ProxySettings, address: tuple[str, int], runner: web.AppRunner, count: int) -> None:
        self._settings = settings
        self._address = address
        self._runner = runner
        self._count = count
        self._tasks = Tasks()
        self._running: dict[int, asyncio.subprocess.Process] = {}
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Self:
        """Open the door and start them. Raise ``OSError``."""
        await self._open_door()
        for number in range(1, self._count + 1):
            _ = self._tasks.spawn(self._keep(number), name=f"serving process {number}")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.begin_stop()
        until = asyncio.get_running_loop().time() + _END_SECONDS
        for process in list(self._running.values()):
            await _ended(process, until - asyncio.get_running_loop().time())
        await self._tasks.aclose()

    @property
    def pids(self) -> list[int]:
        """Of the living."""
        return [process.pid for process in self._running.values()]

    def begin_stop(self) -> None:
        """Have all of them let their requests end and leave."""
        self._stop.set()
        for process in self._running.values():
            assert process.stdin is not None
            process.stdin.close()

    async def _open_door(self) -> None:
        folder = door.prepare(self._settings.data_dir)
        with door.short_path(folder) as path:
            await web.UnixSite(self._runner, path, backlog=_BACKLOG).start()
        (folder / door.NAME).chmod(0o600)

    async def _keep(self, number: int) -> None:
        """Run one follower after the other, until the leader stops."""
        restarts = Restarts()
        while not self._stop.is_set():
            started = time.monotonic()
            how = "could not be started"
            try:
                how = await self._run_one(number)
            except OSError as exc:
                how = f"could not be started: {exc}"
            if self._stop.is_set():
                return
            metrics.WORKER_RESTARTS.inc()
            pause = restarts.pause(time.monotonic() - started)
            log.error("serving process %d %s; the next one starts in %.1f s", number, how, pause)
            await asyncio.sleep(pause)

    async def _run_one(self, number: int) -> str:
        if not (door.directory(self._settings.data_dir) / door.NAME).exists():
            log.error("the socket for further processes was removed; it is made anew")
            await self._open_door()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", _MODULE),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        self._running[number] = process
        try:
            assert process.stdin is not None
            process.stdin.write(frame(self._setup(number)))
            if self._stop.is_set():
                process.stdin.close()
            await self._hear(process, number)
        finally:
            try:
                await _ended(process, _END_SECONDS)
            finally:
                del self._running[number]
        status = process.returncode or 0
        return f"(pid {process.pid}) ended " + (f"by signal {-status}" if status < 0 else f"with status {status}")

    async def _hear(self, process: asyncio.subprocess.Process, number: int) -> None:
        """Take its reports until it ends, or sends what can not be one."""
        assert process.stdout is not None
        services = self._runner.app[SERVICES]
        decoder = msgspec.msgpack.Decoder(Report)
        is_serving = False
        try:
            while True:
                (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
                if length > MAX_FRAME_BYTES:
                    raise ValueError(f"a report of {length} bytes")
                report = decoder.decode(await process.stdout.readexactly(length))
                if not is_serving:
                    is_serving = True
                    metrics.WORKERS.inc()
                    log.info("serving process %d is there, pid %d", number, process.pid)
                await reports.take(services, report)
        except asyncio.IncompleteReadError:
            pass
        except (ValueError, KeyError, CacheError, msgspec.MsgspecError) as exc:
            log.error("serving process %d sends what is no report and is ended: %s", number, exc)  # noqa: TRY400
            with suppress(ProcessLookupError):
                process.kill()
        finally:
            if is_serving:
                metrics.WORKERS.dec()

    def _setup(self, number: int) -> Setup:
        settings, listen = self._settings, self._settings.listen
        address, port = self._address
        return Setup(
            number=number,
            address=listen.address if listen.port else address,
            port=port,
            tls_certificate=_text(listen.tls_certificate),
            tls_key=_text(listen.tls_key),
            tls_client_ca=_text(listen.tls_client_ca),
            access_log=listen.access_log,
            log_level=logging.getLevelName(logging.getLogger().getEffectiveLevel()),
            chunks=str(settings.data_dir.absolute() / "chunks"),
            blobs=str(settings.data_dir.absolute() / "blobs" / "sha256"),
            leader=str(door.directory(settings.data_dir.absolute())),
            default_upstream=settings.mirror.default_upstream,
            upstreams=tuple(map(canonical_upstream, settings.all_upstreams)),
        )


def _text(path: object) -> str | None:
    return None if path is None else str(path)


async def _ended(process: asyncio.subprocess.Process, seconds: float) -> None:
    """Wait for the end, and bring it about after so long."""
    if process.returncode is not None:
        return
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await process.wait()
    except TimeoutError:
        log.warning("serving process with pid %d does not end; killing it", process.pid)
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
