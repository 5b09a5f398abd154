"""``fastpull-proxy scrub``: have the running proxy check everything it holds."""

from __future__ import annotations

from fastpull.cache.scrub import ScrubState
from fastpull.cache.scrub_view import follow
from fastpull.proxy.cli.connection import ProxyConnection
from fastpull.proxy.cli.errors import CommandError


def scrub(proxy: ProxyConnection, rate: int, *, as_json: bool) -> int:
    """Run to the end; return the exit code. Interrupted, the scrub ends too."""
    code = follow(proxy.lines("/v1/scrub", ScrubState, rate=str(rate)), as_json=as_json)
    if code is None:
        raise CommandError("the proxy ended before the scrub did", "scrub again when it is back")
    return code
