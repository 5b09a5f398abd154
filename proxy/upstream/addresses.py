"""Which network addresses an upstream may lead to.

The check stands between name resolution and connect: aiohttp connects to exactly the addresses that its
resolver returns, so a name that resolves to something else a moment later (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection

from aiohttp import ThreadedResolver
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from fastpull.proxy.errors import UpstreamForbiddenError

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(text: str) -> bool:
    """Is this address one of the open internet? Addresses inside of IPv6 wrappers count as what they wrap."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            address = inner
    return address.is_global and not address.is_multicast


def is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


class AddressPolicy:
    """Private addresses only for the hosts that the settings name.

    ``trusted_hosts`` may resolve to anything: an operator wrote them down. ``allow_private`` opens the rest.
    """

    def __init__(self, trusted_hosts: Collection[str], *, allow_private: bool = False) -> None:
        self._trusted = frozenset(host.lower() for host in trusted_hosts)
        self._allow_private = allow_private

    def is_trusted(self, host: str) -> bool:
        return self._allow_private or host.lower() in self._trusted

    def check_url(self, url: URL) -> None:
        """Raise ``UpstreamForbiddenError`` for a literal address that is off limits; names are resolved later."""
        host = url.host or ""
        if is_literal(host) and not self.is_trusted(host) and not is_public(host):
            raise UpstreamForbiddenError(f"{host} is a private address; it is reachable only as a configured upstream")


class GuardedResolver(AbstractResolver):
    """Resolves names, and drops what the policy forbids."""

    def __init__(self, policy: AddressPolicy, inner: AbstractResolver | None = None) -> None:
        self._policy = policy
        self._inner = inner or ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        results = await self._inner.resolve(host, port, family)
        if self._policy.is_trusted(host):
            return results
        allowed = [result for result in results if is_public(result["host"])]
        if not allowed:
            raise UpstreamForbiddenError(f"{host} resolves to private addresses only")
        return allowed

    async def close(self) -> None:
        await self._inner.close()
