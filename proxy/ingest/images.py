"""Images: from a name to a config, layers and a chain, remembered so that a node may ask by chainID alone."""

from __future__ import annotations

import asyncio
import logging
import platform as machine
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import aiofiles
import msgspec

from fastpull.cache.digest import Digest
from fastpull.cache.errors import RecordDamagedError
from fastpull.cache.writer import Writer
from fastpull.proxy.ingest.chains import Chains
from fastpull.proxy.ingest.layers import Layers, OpenBlobs
from fastpull.proxy.ingest.oci import (
    MAX_CONFIG_BYTES,
    ImageConfig,
    ImageManifest,
    LayerDescriptor,
    ManifestError,
    children,
    choose,
    is_index,
    pair_layers,
    parse_config,
    parse_manifest,
)
from fastpull.proxy.ingest.state import ImageRecord, IngestTables, LayerSource, found
from fastpull.proxy.mirror.blobs import BlobSource
from fastpull.proxy.mirror.manifests import StoredManifest
from fastpull.proxy.references import ImageReference, Platform, choose_platform, parse_image

log = logging.getLogger(__name__)

_CONFIG_SECONDS = 120.0
_MOST_NAMES = 16
_MOST_CHILDREN = 4096
_SEEN_GRAIN_SECONDS = 3600.0  # a sighting so soon after the recorded one is not recorded


class Manifests(Protocol):
    """The part of the mirror that is needed here."""

    async def get(self, upstream: str, repository: str, reference: str | Digest) -> StoredManifest: ...


class ImageUnknownError(Exception):
    """No image of that name has passed through here."""

    def __init__(self, name: str) -> None:
        super().__init__(f"image {name} is not known here")
        self.name = name


def own_platform() -> Platform:
    """What a container on this machine would be."""
    return Platform("linux", machine.machine()).normalised()


class Images:
    """Learns images as their manifests pass, or by asking for them."""

    def __init__(
        self,
        tables: IngestTables,
        writer: Writer,
        manifests: Manifests,
        blobs: OpenBlobs,
        layers: Layers,
        chains: Chains,
        *,
        default_upstream: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._tables = tables
        self._writer = writer
        self._manifests = manifests
        self._blobs = blobs
        self._layers = layers
        self._chains = chains
        self._default_upstream = default_upstream
        self._clock = clock
        self._parents: OrderedDict[tuple[str, str, str], str] = OrderedDict()

    def parse(self, name: str) -> ImageReference:
        """Raise ``MalformedNameError``."""
        return parse_image(name, self._default_upstream)

    async def resolve(self, name: str, platform: Platform | None) -> ImageRecord:
        """Ask the registry (or the mirror's memory) what ``name`` is for a platform, default our own.

        Raise ``MalformedNameError``, ``ManifestError`` for what is no image of that platform, or the mirror's errors.
        """
        reference = self.parse(name)
        manifest = await self._manifests.get(reference.upstream, reference.repository, reference.reference)
        if is_index(manifest.body):
            digest = choose(manifest.body, platform or own_platform())
            manifest = await self._manifests.get(reference.upstream, reference.repository, digest)
        record = await self.learn(reference.upstream, reference.repository, manifest, name=str(reference))
        if record is None:
            raise ManifestError(f"{reference} is no container image but {manifest.media_type}")
        if platform is not None and choose_platform(platform, [Platform.parse(record.platform)]) is None:
            raise ManifestError(f"{reference} is for {record.platform}, not {platform}")
        return record

    def note_index(self, upstream: str, repository: str, body: bytes, name: str) -> None:
        """Remember for a while under which tag the images of an index are known to people."""
        for child in children(body):
            self._parents[upstream, repository, str(child)] = name
        while len(self._parents) > _MOST_CHILDREN:
            self._parents.popitem(last=False)

    async def learn(
        self, upstream: str, repository: str, manifest: StoredManifest, *, name: str = ""
    ) -> ImageRecord | None:
        """Note the image that a manifest describes; ``None`` for what is none (an index, a chart).

        Reads the image's config through the mirror. Raise ``ManifestError`` or the mirror's errors.
        """
        parsed = parse_manifest(manifest.body)
        if parsed is None:
            return None
        key = str(manifest.digest)
        name = name or self._parents.get((upstream, repository, key), f"{upstream}/{repository}@{key}")
        known = found(self._tables.images, key)
        if known is not None and self._is_complete(known):
            if (known.upstream, known.repository) != (upstream, repository):
                await self._note_layers(upstream, repository, parse_config(known.config), parsed)
            return await self._seen(known, name)
        raw = await self._read_config(upstream, repository, parsed.config)
        config = parse_config(raw)
        await self._note_layers(upstream, repository, config, parsed)
        record = ImageRecord(
            manifest_digest=key,
            upstream=upstream,
            repository=repository,
            names=(name,),
            platform=str(config.platform),
            config=raw,
            diff_ids=tuple(str(diff_id) for diff_id in config.diff_ids),
            layer_digests=tuple(str(layer.digest) for layer in parsed.layers),
            blob_bytes=sum(layer.blob_bytes for layer in parsed.layers),
            chain_id=await self._chains.remember(config.diff_ids),
            seen_at=self._clock(),
        )
        await self._writer.run(self._tables.images.put, key, record)
        return record

    def count(self) -> int:
        return self._tables.images.count()

    def known(self) -> list[ImageRecord]:
        """All images, the latest first. Reads the whole table: call from a thread."""

        def skip(exc: RecordDamagedError) -> None:
            log.warning("%s: treated as absent", exc)

        return sorted(
            (record for _, record in self._tables.images.items(on_damage=skip)), key=lambda r: r.seen_at, reverse=True
        )

    def repositories(self) -> list[tuple[str, str]]:
        """ChainID and repository of every image, the latest first. As ``known``."""
        return [(record.chain_id, f"{record.upstream}/{record.repository}") for record in self.known()]

    def named(self, name: str) -> list[ImageRecord]:
        """The images that a name, a digest or ``name@digest`` means here, of whatever platform. As ``known``."""
        reference = self.parse(name)
        text = str(reference)
        return [
            record
            for record in self.known()
            if text in record.names
            or (reference.digest is not None and str(reference.digest) == record.manifest_digest)
        ]

    async def mark_warmed(self, record: ImageRecord) -> None:
        if not record.warmed:
            await self._writer.run(self._change, record, {"warmed": True})

    async def forget(self, record: ImageRecord) -> None:
        await self._writer.run(self._tables.images.delete, record.manifest_digest)

    def _is_complete(self, record: ImageRecord) -> bool:
        return (not record.chain_id or self._chains.diff_ids(record.chain_id) is not None) and all(
            self._layers.record(diff_id) is not None for diff_id in record.diff_ids
        )

    async def _seen(self, record: ImageRecord, name: str) -> ImageRecord:
        now = self._clock()
        if record.names[:1] == (name,) and now - record.seen_at < _SEEN_GRAIN_SECONDS:
            return record
        names = (name, *(other for other in record.names if other != name))[:_MOST_NAMES]
        return await self._writer.run(self._change, record, {"names": names, "seen_at": now})

    def _change(self, record: ImageRecord, fields: Mapping[str, Any]) -> ImageRecord:
        """On the writer's thread, so that two changes of one record never overlap."""
        record = msgspec.structs.replace(found(self._tables.images, record.manifest_digest) or record, **fields)
        self._tables.images.put(record.manifest_digest, record)
        return record

    async def _note_layers(self, upstream: str, repository: str, config: ImageConfig, manifest: ImageManifest) -> None:
        sources = {
            str(diff_id): LayerSource(
                upstream=upstream,
                repository=repository,
                digest=str(layer.digest),
                media_type=layer.media_type,
                blob_bytes=layer.blob_bytes,
            )
            for diff_id, layer in pair_layers(config.diff_ids, manifest.layers)
        }
        await self._layers.remember(sources)

    async def _read_config(self, upstream: str, repository: str, config: LayerDescriptor) -> bytes:
        if config.blob_bytes > MAX_CONFIG_BYTES:
            raise ManifestError(f"an image config of {config.blob_bytes} bytes; the limit is {MAX_CONFIG_BYTES}")
        async with asyncio.timeout(_CONFIG_SECONDS):
            async with self._blobs.open(BlobSource(upstream, repository, config.digest, config.blob_bytes)) as blob:
                if blob.size != config.blob_bytes:
                    raise ManifestError(f"the config has {blob.size} bytes, the manifest says {config.blob_bytes}")
                path = await blob.wait_complete()
                async with aiofiles.open(path, "rb") as file:
                    return bytes(await file.read())
