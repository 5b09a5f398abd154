"""Complete blobs, as those see them who answer without the mirror's help: the fast lane, and further processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fastpull.cache.digest import Digest
from fastpull.cache.errors import CacheError
from fastpull.proxy.errors import MirrorError
from fastpull.proxy.mirror.naming import Kind, parse_target
from fastpull.proxy.urls import parse_url


class Shelf(Protocol):
    """Where complete blobs are found."""

    @property
    def default_upstream(self) -> str: ...

    def label(self, upstream: str) -> str:
        """The upstream's name in metrics. Raise ``MirrorError`` for one whose blobs are not to be answered here."""
        ...

    def open(self, digest: Digest) -> tuple[int, int] | None:
        """A descriptor of the blob, which the caller closes, and its size.

        ``None`` = it is not here, not as long as when it was verified, or not known to be more than a manifest.
        """
        ...


@dataclass(frozen=True, slots=True)
class BlobTarget:
    """A request target that names a blob."""

    digest: Digest
    namespace: str | None  # the ``ns`` of the query
    label: str  # of the upstream, in metrics


def find_blob(shelf: Shelf, target: str) -> BlobTarget | None:
    """Read a path with its query, as it came; ``None`` = no blob that the shelf may answer for."""
    try:
        url = parse_url(target, encoded=True)
        namespace = url.query.get("ns")
        if not url.path.startswith("/v2/"):
            return None
        found = parse_target(url.path.removeprefix("/v2/"), namespace, shelf.default_upstream)
        if found is None or found.kind is not Kind.BLOB:
            return None
        return BlobTarget(Digest.parse(found.reference), namespace, shelf.label(found.upstream))
    except (ValueError, MirrorError, CacheError):
        return None
