"""The mirror: everything behind ``/v2``, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from fastpull.cache.tables import Database
from fastpull.cache.tasks import Tasks
from fastpull.cache.writer import Writer
from fastpull.config.proxy import ProxySettings
from fastpull.proxy.mirror import manifests as manifest_tables
from fastpull.proxy.mirror.blob_answers import BlobAnswers
from fastpull.proxy.mirror.blobs import Blobs
from fastpull.proxy.mirror.listings import Listings
from fastpull.proxy.mirror.manifests import Manifests, StoredManifest
from fastpull.proxy.upstream.registry import Upstreams

SIZES_TABLE = "mirror_blob_sizes"
TABLES = (*manifest_tables.TABLES, SIZES_TABLE)
"""Names that the database must have been opened with."""


@dataclass(frozen=True, slots=True)
class ManifestSeen:
    """A manifest that a client got through ``/v2``, by tag or digest; an image's or an index."""

    upstream: str
    repository: str
    reference: str
    manifest: StoredManifest


@dataclass(frozen=True, slots=True)
class Mirror:
    """One of each part, and whom to tell of manifests."""

    settings: ProxySettings
    upstreams: Upstreams
    manifests: Manifests
    blobs: Blobs
    listings: Listings
    blob_answers: BlobAnswers
    on_manifest: Callable[[ManifestSeen], None]

    @classmethod
    @asynccontextmanager
    async def create(
        cls,
        settings: ProxySettings,
        database: Database,
        tasks: Tasks,
        on_manifest: Callable[[ManifestSeen], None] | None = None,
    ) -> AsyncIterator[Mirror]:
        """Open what the mirror keeps under ``data_dir``; leaving the context stops its fills and closes it.

        ``database`` was opened with ``TABLES`` among its names. ``on_manifest`` must not raise or block.
        Raise ``ConfigError`` for unusable upstreams, ``BlobStoreError`` for an unusable directory.
        """
        async with AsyncExitStack() as stack:
            upstreams = await stack.enter_async_context(Upstreams(settings, tasks))
            writer = await stack.enter_async_context(Writer("mirror-tables"))
            sizes = database.table(SIZES_TABLE, int)
            blobs = await stack.enter_async_context(Blobs(settings, upstreams, sizes, tasks))
            yield cls(
                settings,
                upstreams,
                Manifests(settings.mirror, upstreams, database, writer, tasks),
                blobs,
                Listings(settings.mirror, upstreams, tasks),
                BlobAnswers(blobs, upstreams, settings.mirror.answer_timeout_seconds),
                on_manifest or (lambda _: None),
            )
