"""Tags and referrers: passed through, remembered for a moment."""

from __future__ import annotations

import re
from dataclasses import dataclass

import aiohttp
from yarl import URL

from fastpull.cache.single_flight import SingleFlight
from fastpull.cache.tasks import Tasks
from fastpull.config.proxy import MirrorSettings
from fastpull.proxy.errors import MirrorError, RepositoryUnknownError, UpstreamInvalidError, UpstreamUnavailableError
from fastpull.proxy.mirror.recent import Recent
from fastpull.proxy.upstream.registry import Upstreams
from fastpull.proxy.urls import parse_url

_MAX_BODY = 8 * 2**20
_REMEMBERED = 256
_NEXT = re.compile(r"<([^<>\s]{1,4000})>\s*;\s*rel=\"?next\"?", re.IGNORECASE)
_PASSED_ON = ("n", "last", "artifactType")


@dataclass(frozen=True, slots=True)
class Listing:
    """One page. ``next_query`` asks upstream for the page behind it."""

    body: bytes
    content_type: str
    next_query: str | None
    filters_applied: str | None


class Listings:
    """Pages of ``tags/list`` and ``referrers``, by upstream, path and query."""

    def __init__(self, settings: MirrorSettings, upstreams: Upstreams, tasks: Tasks) -> None:
        self._upstreams = upstreams
        self._recent: Recent[tuple[str, str], Listing] = Recent(settings.listing_ttl_seconds, limit=_REMEMBERED)
        self._flights: SingleFlight[tuple[str, str], Listing | MirrorError] = SingleFlight(tasks)

    async def get(self, upstream: str, repository: str, path: str, query: dict[str, str]) -> Listing:
        """``path`` is ``tags/list`` or ``referrers/<digest>``. Raise ``RepositoryUnknownError``, ``MirrorError``.

        A registry without a referrers API answers 404, which is passed on: clients then look for the
        tag ``sha256-<hex>``, and that is a manifest like any other.
        """
        url = str(URL(f"{repository}/{path}").with_query(query))
        key = (upstream, url)
        listing = self._recent.get(key)
        if listing is None:
            outcome = await self._flights.get(key, lambda: self._outcome(upstream, repository, url))
            if isinstance(outcome, MirrorError):
                raise outcome.with_traceback(None)
            listing = outcome
            self._recent.put(key, listing)
        return listing

    async def _outcome(self, upstream: str, repository: str, url: str) -> Listing | MirrorError:
        try:
            return await self._fetch(upstream, repository, url)
        except MirrorError as exc:
            return exc

    async def _fetch(self, upstream: str, repository: str, url: str) -> Listing:
        client = self._upstreams.get(upstream)
        async with client.request("GET", url, repository=repository) as response:
            if response.status == 404:
                raise RepositoryUnknownError(f"{upstream}/{url} does not exist")
            headers = response.headers
            content_type = headers.get("Content-Type", "").partition(";")[0].strip()
            if response.status != 200 or "json" not in content_type:
                raise UpstreamInvalidError(f"{upstream} answered {response.status} {content_type[:60]!r} for {url}")
            body = await _read(upstream, response)
        return Listing(body, content_type, next_query(headers.get("Link")), headers.get("OCI-Filters-Applied"))


def listing_query(query: dict[str, str]) -> dict[str, str]:
    """What of a client's query concerns upstream. Pure."""
    return {name: query[name] for name in _PASSED_ON if name in query}


def next_query(link: str | None) -> str | None:
    """The query of the next page, out of a Link header (RFC 8288). Pure."""
    match = _NEXT.search(link[:8192]) if link else None
    if match is None:
        return None
    try:
        return parse_url(match.group(1), encoded=True).raw_query_string or None
    except ValueError:
        return None


async def _read(upstream: str, response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    try:
        while data := await response.content.readany():
            body += data
            if len(body) > _MAX_BODY:
                raise UpstreamInvalidError(f"{upstream} sent a listing of more than {_MAX_BODY} bytes")
    except (aiohttp.ClientError, TimeoutError, OSError) as exc:
        raise UpstreamUnavailableError(f"{upstream} broke off a listing: {str(exc) or 'timeout'}") from exc
    return bytes(body)
