"""One upstream: logged in, redirected, retried, and its answers sorted into good ones and errors."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from fastpull.config.proxy import MirrorSettings
from fastpull.proxy import metrics
from fastpull.proxy.errors import (
    DeniedError,
    MirrorError,
    ThrottledError,
    UpstreamInvalidError,
    UpstreamUnavailableError,
)
from fastpull.proxy.upstream.error_detail import error_detail
from fastpull.proxy.upstream.login import Login
from fastpull.proxy.upstream.redirects import (
    MAX_REDIRECTS,
    STATUSES,
    follow,
    good_for_seconds,
    is_same_place,
)
from fastpull.proxy.upstream.retry_after import parse_retry_after
from fastpull.proxy.upstream.transport import Transport

log = logging.getLogger(__name__)

_GOOD = frozenset({200, 206, 404, 416})
_EXPIRED_LINK = frozenset({400, 401, 403, 404, 410})  # what storage says to a presigned link that has ended
_PAUSES_SECONDS = (0.1, 0.5)  # before the second and third attempt
_SHORT_WAIT_SECONDS = 2.0  # a Retry-After up to this is waited for
_MAX_LINKS = 4096
_MAX_TRANSFERS = 64


class Upstream:
    """Requests to one registry.

    ``name`` is what clients call it (``docker.io``), ``url`` where it is (``https://registry-1.docker.io``).
    """

    def __init__(self, name: str, url: URL, transport: Transport, login: Login, mirror: MirrorSettings) -> None:
        self.name = name
        self.url = url
        self.parallel_ranges = 1
        self.transfers = asyncio.Semaphore(_MAX_TRANSFERS)  # of all blobs, beyond the first of each
        self._transport = transport
        self._login = login
        self._answer_seconds = mirror.answer_timeout_seconds
        self._links: dict[str, tuple[URL, float]] = {}  # where upstream keeps a blob, and until when (monotonic)

    @asynccontextmanager
    async def request(
        self, method: str, path: str, *, repository: str, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send ``method`` to ``/v2/<path>`` and yield an answer of 200, 206, 404 or 416, its body unread.

        Whatever else comes is raised: ``DeniedError`` for 401 and 403 that no login heals, ``ThrottledError``
        for 429, ``UpstreamUnavailableError`` for 5xx, broken connections and no answer within
        ``answer_timeout_seconds``, ``UpstreamInvalidError`` for the rest. Leaving the context early closes
        the connection.
        """
        try:
            async with asyncio.timeout(self._answer_seconds):
                response = await self._send(method, path, repository, dict(headers or {}))
        except TimeoutError as exc:
            metrics.UPSTREAM_REQUESTS.labels(self.name, "timeout").inc()
            raise UpstreamUnavailableError(f"{self.name} did not answer within {self._answer_seconds:g} s") from exc
        except MirrorError:
            metrics.UPSTREAM_REQUESTS.labels(self.name, "error").inc()
            raise
        metrics.UPSTREAM_REQUESTS.labels(self.name, str(response.status)).inc()
        async with response:
            yield response

    async def _send(self, method: str, path: str, repository: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        refused: set[bool] = set()  # with and without a login, one new attempt each
        failures = 0
        while True:
            authorization = await self._login.authorization(repository)
            try:
                response = await self._follow(method, path, headers, authorization)
            except (aiohttp.ClientError, TimeoutError, OSError) as exc:
                error: MirrorError = UpstreamUnavailableError(
                    f"{self.name} can not be reached: {str(exc) or 'timeout'}"
                )
                error.__cause__ = exc
            else:
                status = response.status
                if status in _GOOD:
                    return response
                async with response:
                    is_ours = is_same_place(response.url, self.url)
                    is_new = bool(authorization) not in refused
                    if is_new and is_ours and (status == 401 or (status == 403 and authorization)):
                        refused.add(bool(authorization))
                        challenges = response.headers.getall("WWW-Authenticate", []) if status == 401 else []
                        await self._login.refused(challenges, repository, authorization)
                        if challenges or authorization:
                            continue
                    error = await self._error(response, repository)
            failures += 1
            pause = _pause(error, failures)
            if pause is None:
                raise error
            await asyncio.sleep(pause)

    async def _follow(
        self, method: str, path: str, headers: dict[str, str], authorization: str | None
    ) -> aiohttp.ClientResponse:
        """One attempt, with its redirects. The login goes to ``self.url`` only."""
        if link := self._known_link(method, path):
            response = await self._ask(method, link, headers)
            if response.status not in _EXPIRED_LINK:
                return response
            response.release()
            self._links.pop(path, None)
        url = self.url.joinpath("v2", path, encoded=True) if "?" not in path else _with_query(self.url, path)
        for _ in range(MAX_REDIRECTS + 1):
            own = is_same_place(url, self.url)
            response = await self._ask(
                method, url, {**headers, "Authorization": authorization} if own and authorization else headers
            )
            if response.status not in STATUSES:
                self._keep_link(method, path, url)
                self._note_limits(response)
                return response
            location = response.headers.get("Location")
            response.release()
            url = follow(url, location)
        raise UpstreamInvalidError(f"{self.name} redirects more than {MAX_REDIRECTS} times")

    async def _ask(self, method: str, url: URL, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        self._transport.policy.check_url(url)
        return await self._transport.session.request(method, url, headers=headers, allow_redirects=False)

    def _known_link(self, method: str, path: str) -> URL | None:
        link, until = self._links.get(path, (None, 0.0))
        return link if method == "GET" and link is not None and time.monotonic() < until else None

    def _keep_link(self, method: str, path: str, url: URL) -> None:
        """Remember where a blob really is, so that its other ranges and later retries go there at once."""
        if method != "GET" or "/blobs/" not in path or is_same_place(url, self.url):
            return
        if seconds := good_for_seconds(url, time.time()):
            if len(self._links) >= _MAX_LINKS:
                self._links.pop(next(iter(self._links)))
            self._links[path] = (url, time.monotonic() + seconds)

    def _note_limits(self, response: aiohttp.ClientResponse) -> None:
        """Docker Hub's ``ratelimit-remaining: 76;w=21600``."""
        remaining, _, _window = response.headers.get("RateLimit-Remaining", "").partition(";")
        if remaining.strip().isascii() and remaining.strip().isdigit():
            metrics.UPSTREAM_PULLS_REMAINING.labels(self.name).set(int(remaining.strip()[:12]))

    async def _error(self, response: aiohttp.ClientResponse, repository: str) -> MirrorError:
        status = response.status
        detail = await error_detail(response)
        if not is_same_place(response.url, self.url) and status < 500 and status != 429:
            # Upstream has just sent us there: not our rights are in question, but its link.
            return UpstreamUnavailableError(f"{self.name} redirects to {response.url.host}, which answered {status}")
        if status in (401, 403):
            return DeniedError(self.name, repository, detail)
        if status == 429:
            return ThrottledError(self.name, detail, parse_retry_after(response.headers.get("Retry-After")))
        text = f"{self.name} answered {status}{': ' + detail if detail else ''}"
        return UpstreamUnavailableError(text) if status >= 500 else UpstreamInvalidError(text)


def _pause(error: MirrorError, failures: int) -> float | None:
    """Seconds until the next attempt; ``None`` = give up. Pure."""
    if failures > len(_PAUSES_SECONDS):
        return None
    if isinstance(error, UpstreamUnavailableError):
        return _PAUSES_SECONDS[failures - 1]
    if isinstance(error, ThrottledError):
        wait = error.retry_after_seconds
        return wait if wait is not None and wait <= _SHORT_WAIT_SECONDS else None
    return None


def _with_query(base: URL, path: str) -> URL:
    bare, _, query = path.partition("?")
    return base.joinpath("v2", bare, encoded=True).with_query(URL(f"?{query}", encoded=True).query)
