"""Where a bearer realm may point. Pure.

A realm receives our password. A registry that has been taken over, or a request that was answered by
somebody else, must not be able to name one of its choice: the realm is on the registry's own host or on
the same registrable domain over https, or on a host that the settings list.
"""

from __future__ import annotations

from collections.abc import Collection

from yarl import URL

from fastpull.proxy.errors import UpstreamForbiddenError
from fastpull.proxy.urls import parse_url

# Public suffixes of two labels under which strangers register names; the cheap part of the list at
# publicsuffix.org that matters for registries. An entry that is missing matters only where an
# upstream of the settings lives directly under such a suffix.
_TWO_LABEL_SUFFIXES = frozenset(
    # One string, because a list of forty would fill a page.
    """ac.uk co.uk gov.uk org.uk net.uk com.au net.au org.au co.nz co.jp ne.jp or.jp co.kr or.kr com.cn net.cn
    org.cn com.br net.br com.mx com.tr co.in net.in co.za com.sg com.hk com.tw github.io gitlab.io pkg.dev gcr.io
    amazonaws.com azurecr.io azurewebsites.net cloudfront.net run.app appspot.com web.app herokuapp.com
    netlify.app vercel.app workers.dev pages.dev r2.dev ngrok.io ngrok.app fly.dev onrender.com
    blob.core.windows.net on.aws""".split()  # noqa: SIM905
)


def registrable_domain(host: str) -> str:
    """The part of a host name that somebody registered; the host itself where that is unclear."""
    host = host.rstrip(".").lower()
    labels = host.split(".")
    if ":" in host or len(labels) < 2 or labels[-1].isdigit():  # an address, or a name without a dot
        return host
    wanted = 2
    while wanted < len(labels) and ".".join(labels[-wanted:]) in _TWO_LABEL_SUFFIXES:
        wanted += 1
    return ".".join(labels[-wanted:])


def check_realm(realm: str, upstream: URL, token_hosts: Collection[str]) -> URL:
    """The realm as a URL to send credentials to. Raise ``UpstreamForbiddenError`` and say what to set."""
    try:
        url = parse_url(realm)
        port = url.port
    except ValueError as exc:
        raise UpstreamForbiddenError(f"{upstream.host}: bearer realm {realm[:200]!r} is no URL") from exc
    if url.host is None or url.scheme not in ("https", "http") or url.user is not None:
        raise UpstreamForbiddenError(f"{upstream.host}: bearer realm {realm[:200]!r} is no https URL")
    is_own = url.scheme == upstream.scheme and url.host == upstream.host
    is_listed = url.host in token_hosts or f"{url.host}:{port}" in token_hosts
    is_related = upstream.host is not None and registrable_domain(url.host) == registrable_domain(upstream.host)
    if url.scheme == "http" and upstream.scheme != "http":
        raise UpstreamForbiddenError(f"{upstream.host}: bearer realm {realm[:200]!r} is not https")
    if not (is_own or is_listed or is_related):
        raise UpstreamForbiddenError(
            f"{upstream.host}: bearer realm on {url.host!r} is refused; if that host is right, "
            f"add it to token_hosts of the upstream"
        )
    return url
