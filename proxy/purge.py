"""Forgetting: an image with all that no other image needs, or only what a tag points to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from fastpull.cache.digest import ChunkId, Digest
from fastpull.cache.store import ChunkStore
from fastpull.cache.writer import Writer
from fastpull.image.errors import IndexFormatError
from fastpull.proxy.api.messages import Purged
from fastpull.proxy.ingest.figures import chunks_of
from fastpull.proxy.ingest.images import ImageUnknownError
from fastpull.proxy.ingest.service import Ingest
from fastpull.proxy.ingest.state import ImageRecord
from fastpull.proxy.mirror.blobs import Blobs
from fastpull.proxy.mirror.manifests import Manifests

log = logging.getLogger(__name__)


class Purge:
    """Removes in the order image, chain, layer, chunk, blob: what a crash leaves behind is named by nothing."""

    def __init__(
        self, ingest: Ingest, manifests: Manifests, blobs: Blobs, store: ChunkStore, store_writer: Writer
    ) -> None:
        self._ingest = ingest
        self._manifests = manifests
        self._blobs = blobs
        self._store = store
        self._store_writer = store_writer

    async def tag(self, name: str) -> Purged:
        """The next pull of the tag asks the registry. Raise ``ImageUnknownError``, ``MalformedNameError``."""
        reference = self._ingest.images.parse(name)
        if not await self._manifests.purge(reference.upstream, reference.repository, reference.reference):
            raise ImageUnknownError(str(reference))
        return Purged(image=str(reference), tags=1)

    async def image(self, name: str) -> Purged:
        """Forget every platform of the image. Raise ``ImageUnknownError``, ``MalformedNameError``."""
        images, layers, chains = self._ingest.images, self._ingest.layers, self._ingest.chains
        reference = images.parse(name)
        gone = await asyncio.to_thread(images.named, name)
        if not gone:
            raise ImageUnknownError(str(reference))
        doomed = {record.manifest_digest for record in gone}
        kept = [record for record in await asyncio.to_thread(images.known) if record.manifest_digest not in doomed]

        tags = 0
        for record in gone:
            await images.forget(record)
            tags += await self._forget_manifests(record)
        kept_chains = {chain for record in kept for chain in chains.prefixes(record.chain_id)}
        for chain in {chain for record in gone for chain in chains.prefixes(record.chain_id)} - kept_chains:
            await chains.forget_link(chain)
        kept_layers = {diff_id for record in kept for diff_id in record.diff_ids}
        gone_layers = {diff_id for record in gone for diff_id in record.diff_ids} - kept_layers
        chunks = await self._only_of(gone_layers, kept_layers)
        for diff_id in gone_layers:
            await layers.forget(diff_id)
        kept_blobs = {digest for record in kept for digest in record.layer_digests}
        gone_blobs = {digest for record in gone for digest in record.layer_digests} - kept_blobs
        return Purged(
            image=str(reference),
            tags=tags,
            images=len(gone),
            layers=len(gone_layers),
            chunk_bytes=await self._store_writer.run(self._store.drop, chunks),
            blob_bytes=sum(self._blobs.drop(Digest.parse(digest)) for digest in gone_blobs),
        )

    async def _forget_manifests(self, record: ImageRecord) -> int:
        """The image's manifest and the tags by which it is known; return how many tags."""
        await self._manifests.purge(record.upstream, record.repository, Digest.parse(record.manifest_digest))
        tags = 0
        for name in record.names:
            reference = self._ingest.images.parse(name)
            tags += await self._manifests.purge(reference.upstream, reference.repository, reference.reference)
        return tags

    async def _only_of(self, gone: Iterable[str], kept: Iterable[str]) -> set[ChunkId]:
        """The chunks of layers that go and of none that stays."""
        chunks: set[ChunkId] = set()
        for diff_id in gone:
            chunks |= await self._chunks(diff_id)
        for diff_id in kept:
            if chunks:
                chunks -= await self._chunks(diff_id)
        return chunks

    async def _chunks(self, diff_id: str) -> set[ChunkId]:
        if not self._ingest.layers.is_ready(diff_id):
            return set()
        try:
            return await asyncio.to_thread(chunks_of, await self._ingest.layers.index(diff_id))
        except IndexFormatError as exc:
            log.warning("%s: its chunks are left to eviction", exc)
            return set()
