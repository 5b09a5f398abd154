"""All upstreams: which there are, and one client for each."""

from __future__ import annotations

from typing import Self

from yarl import URL

from fastpull.cache.tasks import Tasks
from fastpull.config.errors import ConfigError
from fastpull.config.proxy import ProxySettings, UpstreamSettings
from fastpull.proxy.errors import UpstreamForbiddenError, UpstreamUnknownError
from fastpull.proxy.references import DOCKER_HUB, canonical_upstream, is_host
from fastpull.proxy.upstream.addresses import is_literal, is_public
from fastpull.proxy.upstream.client import Upstream
from fastpull.proxy.upstream.credentials import AnonymousProvider, make_provider
from fastpull.proxy.upstream.login import Login
from fastpull.proxy.upstream.tokens import TokenCache
from fastpull.proxy.upstream.transport import Transport
from fastpull.proxy.urls import parse_url

_DOCKER_HUB_URL = "https://registry-1.docker.io"
_MAX_DYNAMIC = 1024


def upstream_url(name: str, settings: UpstreamSettings) -> URL:
    """Where the registry ``name`` is. Raise ``ConfigError``."""
    text = settings.url or (_DOCKER_HUB_URL if name == DOCKER_HUB else f"https://{name}")
    try:
        url = parse_url(text)
        host = url.host
    except ValueError as exc:
        raise ConfigError(f'[upstreams."{name}"] url = {text!r} is no URL: {exc}') from exc
    if url.scheme not in ("http", "https") or not host or url.path not in ("", "/") or url.query_string or url.user:
        raise ConfigError(f'[upstreams."{name}"] url = {text!r}: write http(s)://host[:port]')
    return url.origin()


class Upstreams:
    """Clients by the name that requests use. Names that the settings lack are refused, unless any is allowed."""

    def __init__(self, settings: ProxySettings, tasks: Tasks) -> None:
        self._mirror = settings.mirror
        self._tasks = tasks
        self._settings = {canonical_upstream(name): value for name, value in settings.all_upstreams.items()}
        self._urls = {name: upstream_url(name, value) for name, value in self._settings.items()}
        self._known: dict[str, Upstream] = {}
        self._dynamic: dict[str, Upstream] = {}
        self._transports: list[Transport] = []
        self._open_transport: Transport | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for transport in self._transports:
            await transport.aclose()

    def knows(self, name: str) -> bool:
        return canonical_upstream(name) in self._settings

    def get(self, name: str) -> Upstream:
        """The client for ``name``. Raise ``UpstreamUnknownError`` or ``UpstreamForbiddenError``."""
        name = canonical_upstream(name)
        if (upstream := self._known.get(name)) is not None:
            return upstream
        if (settings := self._settings.get(name)) is not None:
            self._known[name] = upstream = self._configured(name, settings)
            return upstream
        if not self._mirror.allow_any_upstream or not is_host(name):
            raise UpstreamUnknownError(name)
        return self._any(name)

    def _configured(self, name: str, settings: UpstreamSettings) -> Upstream:
        url = self._urls[name]
        token_hosts = {host.partition(":")[0] for host in settings.token_hosts}
        transport = Transport(
            self._mirror,
            trusted_hosts={url.host or "", *token_hosts},
            allow_private=settings.redirect_private,
            ca_file=settings.ca_file,
        )
        self._transports.append(transport)
        provider = make_provider(settings.credentials, url.host or "")
        login = Login(name, url, settings.token_hosts, provider, TokenCache(name, transport.session, self._tasks))
        upstream = Upstream(name, url, transport, login, self._mirror)
        upstream.parallel_ranges = settings.parallel_ranges
        return upstream

    def _any(self, name: str) -> Upstream:
        """An upstream that only a request named: anonymous, https, public addresses, all on one session."""
        if (upstream := self._dynamic.get(name)) is not None:
            return upstream
        url = URL(f"https://{name}")
        host = url.host or ""
        if "." not in host or host.endswith((".local", ".internal", ".localhost", ".svc")):
            raise UpstreamForbiddenError(f"{name} is a private name; add it to the settings as an upstream")
        if is_literal(host) and not is_public(host):
            raise UpstreamForbiddenError(f"{name} is a private address; add it to the settings as an upstream")
        if self._open_transport is None:
            self._open_transport = Transport(self._mirror)
            self._transports.append(self._open_transport)
        if len(self._dynamic) >= _MAX_DYNAMIC:
            self._dynamic.pop(next(iter(self._dynamic)))
        tokens = TokenCache(name, self._open_transport.session, self._tasks)
        login = Login(name, url, (), AnonymousProvider(), tokens)
        upstream = Upstream(name, url, self._open_transport, login, self._mirror)
        upstream.parallel_ranges = UpstreamSettings().parallel_ranges
        self._dynamic[name] = upstream
        return upstream
