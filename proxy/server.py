"""Listening: sockets, TLS, signals, and a stop that lets requests end."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web

from fastpull.config.proxy import ListenSettings, ProxySettings
from fastpull.proxy.access_log import JsonAccessLogger
from fastpull.proxy.app import build_app
from fastpull.proxy.mirror.runner import MirrorRunner

log = logging.getLogger(__name__)

_SHUTDOWN_SECONDS = 10.0  # running requests may end; what a node asks for it asks again elsewhere
_KEEPALIVE_SECONDS = 75.0
_MAX_HEADER_BYTES = 32 * 1024  # GAR's redirects and tokens exceed aiohttp's 8 KiB


class ListenError(Exception):
    """The address or the TLS files can not be used. ``remedy`` says what to do."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause)
        self.remedy = remedy


async def run_server(
    settings: ProxySettings, *, started: Callable[[tuple[str, int]], Awaitable[None]] | None = None
) -> None:
    """Serve until SIGTERM or SIGINT. Raise ``ListenError`` when the address can not be had.

    A second signal ends the process at once: nothing on disk depends on a graceful stop.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    tls = tls_context(settings.listen)
    runner = MirrorRunner(
        build_app(settings),
        handle_signals=False,
        shutdown_timeout=_SHUTDOWN_SECONDS,
        keepalive_timeout=_KEEPALIVE_SECONDS,
        max_line_size=_MAX_HEADER_BYTES,
        max_field_size=_MAX_HEADER_BYTES,
        access_log_class=JsonAccessLogger,
        access_log=logging.getLogger("aiohttp.access") if settings.listen.access_log else None,
    )
    try:
        await runner.setup()
        address = await _listen(runner, settings.listen, tls)
        log.info(
            "listening on %s://%s:%d, data in %s, upstreams %s",
            "https" if tls else "http",
            *address,
            settings.data_dir,
            ", ".join(sorted(settings.all_upstreams)),
        )
        if started is not None:
            await started(address)
        await stop.wait()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        log.info("stopping: running requests have %.0f s to end", _SHUTDOWN_SECONDS)
    finally:
        await runner.cleanup()
    log.info("stopped")


async def _listen(runner: web.AppRunner, listen: ListenSettings, tls: ssl.SSLContext | None) -> tuple[str, int]:
    site = web.TCPSite(runner, listen.address, listen.port, ssl_context=tls, backlog=1024)
    try:
        await site.start()
    except OSError as exc:
        reason = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else str(exc)
        remedy = "name another address with --listen ADDRESS:PORT"
        if exc.errno == errno.EADDRINUSE:
            remedy = f"stop what uses the port (`ss -ltnp | grep :{listen.port}`), or {remedy}"
        raise ListenError(f"can not listen on {listen.address}:{listen.port}: {reason}", remedy) from exc
    host, port, *_ = runner.addresses[0]
    return str(host), int(port)


def tls_context(listen: ListenSettings) -> ssl.SSLContext | None:
    """TLS 1.2 and newer; with ``tls_client_ca`` only for clients whose certificate that CA signed."""
    if listen.tls_certificate is None:
        if listen.tls_client_ca is not None:
            raise ListenError("listen.tls_client_ca without listen.tls_certificate", "set tls_certificate and tls_key")
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(listen.tls_certificate, listen.tls_key)
        if listen.tls_client_ca is not None:
            context.load_verify_locations(listen.tls_client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as exc:
        raise ListenError(
            f"can not use the TLS files: {exc}",
            "check listen.tls_certificate (PEM, with its chain), tls_key and tls_client_ca",
        ) from exc
    return context
