"""Where a redirect leads, and for how long. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from yarl import URL

from fastpull.proxy.errors import UpstreamForbiddenError, UpstreamInvalidError
from fastpull.proxy.urls import parse_url

MAX_REDIRECTS = 5
MAX_LOCATION = 32 * 1024
STATUSES = frozenset({301, 302, 303, 307, 308})

_MARGIN_SECONDS = 30.0
_LONGEST_SECONDS = 240.0  # GHCR's links live for five minutes and do not say so


def follow(current: URL, location: str | None) -> URL:
    """The URL that a redirect from ``current`` names. GAR sends relative ones.

    The text is taken as encoded already: to quote it again would break the signature of a presigned link.
    Raise ``UpstreamInvalidError`` for nonsense, ``UpstreamForbiddenError`` for a fall from https to http.
    """
    if not location or len(location) > MAX_LOCATION:
        raise UpstreamInvalidError(f"{current.host} redirects to nowhere")
    try:
        target = current.join(parse_url(location, encoded=True))
        host, _port = target.host, target.port
    except ValueError as exc:
        raise UpstreamInvalidError(f"{current.host} redirects to {location[:80]!r}, which is no URL") from exc
    if not host or target.scheme not in ("http", "https") or target.user is not None:
        raise UpstreamInvalidError(f"{current.host} redirects to {location[:80]!r}, which is no http URL")
    if target.scheme == "http" and current.scheme == "https":
        raise UpstreamForbiddenError(f"{current.host} redirects from https to http on {host}")
    return target


def is_same_place(a: URL, b: URL) -> bool:
    """May what we tell ``a`` be told ``b``? Same scheme, host and port (RFC 6454)."""
    return (a.scheme, a.host, a.port) == (b.scheme, b.host, b.port)


def good_for_seconds(target: URL, now: float) -> float:
    """How long a redirect may be reused: until shortly before its signature ends, four minutes at most.

    ``now`` is in seconds since the epoch. Zero = use once.
    """
    expiry = _expiry(target)
    if expiry is None:
        return _LONGEST_SECONDS
    return max(0.0, min(expiry - now - _MARGIN_SECONDS, _LONGEST_SECONDS))


def _expiry(target: URL) -> float | None:
    """When a presigned link ends: S3 and GCS v4 (date + seconds), Azure SAS (``se``), S3 v2 and CloudFront (epoch)."""
    query = target.query
    for vendor in ("X-Amz", "X-Goog"):
        if (date := query.get(f"{vendor}-Date")) and (seconds := query.get(f"{vendor}-Expires")):
            try:
                signed_at = datetime.strptime(date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
                return signed_at.timestamp() + int(seconds)
            except (ValueError, OverflowError):
                return 0.0
    try:
        if end := query.get("se"):
            moment = datetime.fromisoformat(end)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        if end := query.get("Expires"):
            return float(int(end))
    except (ValueError, OverflowError):
        return 0.0
    return None
