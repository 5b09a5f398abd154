"""HTTP to whichever proxy is up: connections, time limits, health. The one place that knows aiohttp's errors."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Self

import aiohttp
import msgspec
from yarl import URL

from fastpull.cache.tasks import Tasks
from fastpull.cache.wire import ErrorBody
from fastpull.config.errors import ConfigError
from fastpull.config.node import TlsSettings
from fastpull.fuse_client.errors import ProxyAnswerError, ProxyError, ProxyProtocolError, ProxyUnreachableError
from fastpull.fuse_client.fetch.endpoints import Endpoint, Endpoints

log = logging.getLogger(__name__)

CONNECT_SECONDS = 3.0
PROBE_SECONDS = 2.0
ERROR_BODY_BYTES = 64 * 1024
READ_BUFFER_BYTES = 512 * 1024  # with the default of 64 KiB a 1 MiB answer takes 16 wake-ups instead of 2 to 4


class Transport:
    """Sends requests to the proxies in the order of the settings, passing over those that are down.

    Every failure leaves as a ``ProxyError``. A proxy that went down is probed (``GET /healthz``) until it
    answers; then the functions in ``on_recovery`` are called.
    """

    def __init__(self, session: aiohttp.ClientSession, endpoints: Endpoints, *, read_seconds: float) -> None:
        self.endpoints = endpoints
        self.on_recovery: list[Callable[[], None]] = []
        self._session = session
        self._read_seconds = read_seconds
        self._tasks = Tasks()
        self._probing: asyncio.Task[None] | None = None

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, urls: Sequence[str], *, tls: TlsSettings, read_seconds: float) -> AsyncIterator[Self]:
        """Raise ``ConfigError`` for TLS files that can not be used or an address that is none."""
        for url in urls:
            if URL(url).scheme not in ("http", "https") or not URL(url).host:
                raise ConfigError(f"proxies: {url!r} is no address; write for example http://fastpull-proxy:5050")
        if not urls:
            raise ConfigError("proxies: at least one address is needed, for example http://fastpull-proxy:5050")
        # Whoever keeps the connections few is the scheduler, not the pool.
        connector = aiohttp.TCPConnector(limit=0, ssl=tls_context(tls), keepalive_timeout=60.0)
        async with aiohttp.ClientSession(
            connector=connector,
            auto_decompress=False,  # bodies are bounded and unpacked by those who know their size
            read_bufsize=READ_BUFFER_BYTES,
            timeout=aiohttp.ClientTimeout(total=None),
        ) as session:
            transport = cls(session, Endpoints(urls), read_seconds=read_seconds)
            try:
                yield transport
            finally:
                await transport._tasks.aclose()

    @contextlib.asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        attempt: int = 0,
        read_seconds: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request and give its answer, whose status is 2xx. Reading the body counts as part of it.

        ``attempt`` makes retries go round the proxies. ``read_seconds`` bounds each wait for bytes.
        """
        endpoint = self.endpoints.pick(attempt)
        if endpoint is None:
            raise ProxyUnreachableError(self.endpoints.urls, self.endpoints.last_error())
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=read_seconds or self._read_seconds
        )
        url = URL(endpoint.url + path, encoded=True)
        try:
            async with await self._send(method, url, params, body, headers, timeout) as response:
                if response.status >= 300:  # a redirect is not followed: /v1 has none
                    raise await _refusal(str(url), response)
                yield response
        except ProxyAnswerError as exc:
            if exc.status >= 500:
                self._failed(endpoint, str(exc))
            else:
                self._answered(endpoint)
            raise
        except ProxyProtocolError as exc:  # raised by whoever reads the body
            self._failed(endpoint, str(exc))
            raise
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as exc:
            reason = str(exc) or type(exc).__name__
            self._failed(endpoint, reason, refused=True)
            raise ProxyUnreachableError([endpoint.url], reason) from exc
        except (aiohttp.ClientError, TimeoutError, OSError) as exc:
            reason = str(exc) or type(exc).__name__
            self._failed(endpoint, reason)
            raise ProxyProtocolError(str(url), reason) from exc
        else:
            self._answered(endpoint)

    async def _send(
        self,
        method: str,
        url: URL,
        params: Mapping[str, str] | None,
        body: bytes | None,
        headers: Mapping[str, str] | None,
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        for again in (True, False):
            try:
                return await self._session.request(
                    method, url, params=params, data=body, headers=headers, timeout=timeout, allow_redirects=False
                )
            except (aiohttp.ServerDisconnectedError, ConnectionResetError):
                # An idle connection that the proxy closed just now. All requests of /v1 may be repeated.
                if not again:
                    raise
        raise AssertionError("unreachable")

    # -- health --------------------------------------------------------------------------------------

    def _answered(self, endpoint: Endpoint) -> None:
        if self.endpoints.answered(endpoint):
            self._recovered(endpoint)

    def _failed(self, endpoint: Endpoint, reason: str, *, refused: bool = False) -> None:
        if self.endpoints.failed(endpoint, reason, time.monotonic(), refused=refused):
            log.warning("proxy %s is down: %s", endpoint.url, reason)
        if not endpoint.is_up and (self._probing is None or self._probing.done()):
            self._probing = self._tasks.spawn(self._probe(), name="probe proxies")

    def _recovered(self, endpoint: Endpoint) -> None:
        log.warning("proxy %s is back", endpoint.url)
        for wake in self.on_recovery:
            wake()

    async def _probe(self) -> None:
        while (due_at := self.endpoints.next_probe()) is not None:
            await asyncio.sleep(max(0.0, due_at - time.monotonic()))
            for endpoint in self.endpoints.due(time.monotonic()):
                await self._probe_one(endpoint)

    async def _probe_one(self, endpoint: Endpoint) -> None:
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                async with self._session.get(endpoint.url + "/healthz", allow_redirects=False) as response:
                    if response.status >= 500:
                        raise ProxyAnswerError(endpoint.url, response.status, "not healthy")
        except (aiohttp.ClientError, TimeoutError, OSError, ProxyError) as exc:
            self.endpoints.probe_failed(endpoint, str(exc) or type(exc).__name__, time.monotonic())
        else:
            self._answered(endpoint)


async def read_bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body. Raise ``ProxyProtocolError`` when it is longer than ``limit``."""
    parts: list[bytes] = []
    total = 0
    async for data in response.content.iter_any():
        total += len(data)
        if total > limit:
            raise ProxyProtocolError(str(response.url), f"more than {limit} bytes")
        parts.append(data)
    return b"".join(parts)


async def _refusal(url: str, response: aiohttp.ClientResponse) -> ProxyAnswerError:
    raw = await response.content.read(ERROR_BODY_BYTES)
    try:
        body = msgspec.json.decode(raw, type=ErrorBody)
    except msgspec.DecodeError:
        body = ErrorBody(error=response.reason or "")
    return ProxyAnswerError(url, response.status, body.error, remedy=body.remedy)


def tls_context(settings: TlsSettings) -> ssl.SSLContext:
    """Raise ``ConfigError`` for files that can not be used."""
    try:
        context = ssl.create_default_context(cafile=None if settings.ca is None else str(settings.ca))
        if settings.certificate is not None:
            context.load_cert_chain(settings.certificate, settings.key)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"tls: {exc}") from exc
    return context
