"""Which headers of a message go on to the next hop. Pure (RFC 9110, section 7.6.1)."""

from __future__ import annotations

from collections.abc import Mapping

from multidict import CIMultiDict

_HOP_BY_HOP = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
)


def end_to_end(headers: Mapping[str, str], *, without: frozenset[str] = frozenset()) -> CIMultiDict[str]:
    """All headers, each as often as it came, but those for this hop alone: the known ones, those that ``Connection``
    names, and ``without`` (in lower case).
    """
    named = {
        name.strip().lower()
        for key, value in headers.items()
        if key.lower() == "connection"
        for name in value.split(",")
    }
    # Content-Length frames the body; who names it in Connection is after something else (7.6.1 forbids it).
    dropped = (named - {"content-length", "host", "authorization", "range"}) | _HOP_BY_HOP | without
    return CIMultiDict((key, value) for key, value in headers.items() if key.lower() not in dropped)
