"""Paths of ``/v2``. Pure (distribution-spec, "Endpoints" and "Registry Proxying")."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass

from fastpull.proxy.errors import MalformedNameError
from fastpull.proxy.references import (
    canonical_repository,
    canonical_upstream,
    is_host,
    is_repository,
    looks_like_host,
)

_PATH = re.compile(r"(?P<name>.+)/(?:(?P<kind>manifests|blobs|referrers)/(?P<reference>[^/]+)|tags/list)", re.DOTALL)

_MAX_NAME = 380  # of upstream and repository; with a digest behind them they are a key of at most 511 bytes


class Kind(enum.Enum):
    MANIFEST = "manifests"
    BLOB = "blobs"
    REFERRERS = "referrers"
    TAGS = "tags"


@dataclass(frozen=True, slots=True)
class Target:
    """What a request is about. ``reference`` is unparsed: a tag, a digest, or empty for ``TAGS``."""

    kind: Kind
    upstream: str
    repository: str
    reference: str


def parse_target(path: str, namespace: str | None, default_upstream: str) -> Target | None:
    """Read what stands behind ``/v2/``; ``None`` = no pull route. Raise ``MalformedNameError``.

    ``namespace`` is the ``ns`` of the query and wins. Without it a first component that looks like a host
    names the upstream (``/v2/ghcr.io/org/app/…``, for clients that know no ``ns``), else it is the default.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    name = match["name"]
    kind = Kind(match["kind"]) if match["kind"] else Kind.TAGS
    upstream = default_upstream
    if namespace:
        if not is_host(namespace):
            raise MalformedNameError(f"ns={namespace[:100]!r} is no host")
        upstream = namespace
    else:
        head, slash, rest = name.partition("/")
        if slash and looks_like_host(head):
            upstream, name = head, rest
    upstream = canonical_upstream(upstream)
    repository = canonical_repository(upstream, name)
    if not is_repository(repository) or len(upstream) + len(repository) > _MAX_NAME:
        raise MalformedNameError(f"{name[:200]!r} is no repository name")
    return Target(kind, upstream, repository, match["reference"] or "")
