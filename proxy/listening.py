"""Listening on a TCP port, alone or together with other processes, with TLS or without."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl

from aiohttp import web

from fastpull.config.proxy import ListenSettings

SHUTDOWN_SECONDS = 10.0  # running requests may end; what a node asks for it asks again elsewhere
KEEPALIVE_SECONDS = 75.0
# aiohttp's limit is 8 KiB. Behind a single sign-on clients come with tokens of several of these, and a whole head of
# 32 KiB is what gateways let through.
MAX_HEADER_BYTES = 64 * 1024

_BACKLOG = 1024
_CLAIM_SECONDS = 5.0  # the further processes of a proxy that was killed leave the port within a moment
_CLAIM_EVERY_SECONDS = 0.05


class ListenError(Exception):
    """The address or the TLS files can not be used. ``remedy`` says what to do."""

    def __init__(self, cause: str, remedy: str) -> None:
        super().__init__(cause)
        self.remedy = remedy


async def listen(
    runner: web.AppRunner, settings: ListenSettings, tls: ssl.SSLContext | None, *, is_shared: bool = False
) -> tuple[str, int]:
    """Serve ``runner`` on the address; return it, with the real port. Raise ``ListenError``.

    ``is_shared``: other processes of this user may listen on the port as well (socket(7), SO_REUSEPORT); the kernel
    spreads the connections over all of them.
    """
    site = web.TCPSite(
        runner, settings.address, settings.port, ssl_context=tls, backlog=_BACKLOG, reuse_port=is_shared or None
    )
    try:
        await site.start()
    except OSError as exc:
        raise _told(exc, settings) from exc
    host, port, *_ = runner.addresses[0]
    return str(host), int(port)


async def claim(settings: ListenSettings) -> None:
    """Make sure that nobody listens on a port that is about to be shared. Raise ``ListenError``.

    With SO_REUSEPORT a second proxy, of another data directory, would get half of the clients without a word.
    """
    until = asyncio.get_running_loop().time() + _CLAIM_SECONDS
    while True:
        try:
            _bind_alone(settings)
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE or asyncio.get_running_loop().time() > until:
                raise _told(exc, settings) from exc
        else:
            return
        await asyncio.sleep(_CLAIM_EVERY_SECONDS)


def _bind_alone(settings: ListenSettings) -> None:
    flags = socket.AI_PASSIVE
    for family, kind, protocol, _, address in socket.getaddrinfo(
        settings.address or None, settings.port, type=socket.SOCK_STREAM, flags=flags
    ):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            probe.bind(address)
            probe.listen(1)


def _told(exc: OSError, settings: ListenSettings) -> ListenError:
    reason = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else str(exc)
    remedy = "name another address with --listen ADDRESS:PORT"
    if exc.errno == errno.EADDRINUSE:
        remedy = f"stop what uses the port (`ss -ltnp | grep :{settings.port}`), or {remedy}"
    return ListenError(f"can not listen on {settings.address}:{settings.port}: {reason}", remedy)


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
