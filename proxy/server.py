"""The serving process: sockets, signals, further processes, and a stop that lets requests end."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from fastpull.config.proxy import ProxySettings
from fastpull.proxy.access_log import JsonAccessLogger
from fastpull.proxy.app import build_app
from fastpull.proxy.listening import (
    KEEPALIVE_SECONDS,
    MAX_HEADER_BYTES,
    SHUTDOWN_SECONDS,
    ListenError,
    claim,
    listen,
    tls_context,
)
from fastpull.proxy.mirror.runner import MirrorRunner
from fastpull.proxy.workers.leader import Followers, process_count

__all__ = ["ListenError", "run_server", "tls_context"]

log = logging.getLogger(__name__)


async def run_server(
    settings: ProxySettings, *, started: Callable[[tuple[str, int]], Awaitable[None]] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT. Raise ``ListenError`` when the address can not be had.

    A second signal ends the process at once: nothing on disk depends on a graceful stop. With ``listen.workers``
    this is the first of the processes that serve; it starts the others and ends them (``workers/``).
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tls = tls_context(settings.listen)
    processes = process_count(settings.listen)
    runner = MirrorRunner(
        build_app(settings),
        handle_signals=False,
        shutdown_timeout=SHUTDOWN_SECONDS,
        keepalive_timeout=KEEPALIVE_SECONDS,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        access_log_class=JsonAccessLogger,
        access_log=logging.getLogger("aiohttp.access") if settings.listen.access_log else None,
    )
    async with AsyncExitStack() as stack:
        stack.push_async_callback(runner.cleanup)
        if processes > 1:
            await claim(settings.listen)
        await runner.setup()
        address = await listen(runner, settings.listen, tls, is_shared=processes > 1)
        log.info(
            "listening on %s://%s:%d, data in %s, upstreams %s",
            "https" if tls else "http",
            *address,
            settings.data_dir,
            ", ".join(sorted(settings.all_upstreams)),
        )
        followers = None
        if processes > 1:
            followers = await stack.enter_async_context(Followers(settings, address, runner, processes - 1))
        if started is not None:
            await started(address)
        await stop.wait()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        log.info("stopping: running requests have %.0f s to end", SHUTDOWN_SECONDS)
        if followers is not None:
            followers.begin_stop()
            await runner.cleanup()  # now, not after them: both let their requests end at the same time
    log.info("stopped")
