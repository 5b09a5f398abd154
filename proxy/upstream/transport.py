"""Connections to upstreams: one HTTP session with our limits and our view of addresses."""

from __future__ import annotations

import ssl
from collections.abc import Collection
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import aiohttp

from fastpull.config.errors import ConfigError
from fastpull.config.proxy import MirrorSettings
from fastpull.proxy.upstream.addresses import AddressPolicy, GuardedResolver
from fastpull.proxy.upstream.via import OUR_VIA, VIA

MAX_HEADER_BYTES = 64 * 1024  # GAR's redirects, GHCR's and Azure's tokens exceed aiohttp's 8 KiB
_READ_BUFFER_BYTES = 512 * 1024

try:
    USER_AGENT = f"fastpull-proxy/{version('fastpull-proxy')}"
except PackageNotFoundError:  # run from a folder that was never installed
    USER_AGENT = "fastpull-proxy"


class Transport:
    """A session and the addresses that it may reach. Redirects are never followed by themselves.

    HTTP/1.1 with as many connections as there are transfers: one HTTP/2 connection is no faster than one stream.
    """

    def __init__(
        self,
        mirror: MirrorSettings,
        *,
        trusted_hosts: Collection[str] = (),
        allow_private: bool = False,
        ca_file: Path | None = None,
    ) -> None:
        self.policy = AddressPolicy(trusted_hosts, allow_private=allow_private)
        self.session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,
                limit_per_host=0,
                ttl_dns_cache=30,
                resolver=GuardedResolver(self.policy),
                ssl=_tls(ca_file) if ca_file is not None else True,
            ),
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=mirror.connect_timeout_seconds,
                sock_read=mirror.read_timeout_seconds,
            ),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity", VIA: OUR_VIA},
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            read_bufsize=_READ_BUFFER_BYTES,
            trust_env=False,
        )

    async def aclose(self) -> None:
        await self.session.close()


def _tls(ca_file: Path) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context()
        context.load_verify_locations(ca_file)
    except (OSError, ssl.SSLError) as exc:
        raise ConfigError(f"ca_file {ca_file}: {exc}") from exc
    return context
