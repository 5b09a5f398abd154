"""Chains: from the indexes of their layers to a bootstrap and a chunk map, built once and served verified."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from typing import Protocol

import zstandard

from fastpull.cache.digest import Digest, chain_ids
from fastpull.cache.single_flight import SingleFlight
from fastpull.cache.tasks import Tasks
from fastpull.cache.writer import Writer
from fastpull.image.chain import BuiltChain
from fastpull.image.chunk_map import ChunkMap
from fastpull.image.errors import IndexFormatError
from fastpull.image.layer_index import LayerIndex
from fastpull.image.place_layers import place_layers
from fastpull.proxy.ingest.changes import Changes
from fastpull.proxy.ingest.layers import Layers
from fastpull.proxy.ingest.oci import MAX_LAYERS
from fastpull.proxy.ingest.state import (
    ArtifactKind,
    ArtifactRecord,
    BuiltRecord,
    ChainLink,
    IngestTables,
    artifact_key,
    found,
)

log = logging.getLogger(__name__)

_ZSTD_LEVEL = 6  # written once, sent to every node; a bootstrap of 44,000 entries takes 0.1 s
_OPEN_MAPS = 8
KINDS: tuple[ArtifactKind, ...] = ("bootstrap", "chunkmap")


class ChainUnknownError(Exception):
    """No manifest with this chain has passed through here."""

    def __init__(self, chain_id: str) -> None:
        super().__init__(f"chain {chain_id} is not known: no image with it was pulled through this proxy")
        self.chain_id = chain_id


class ChainPool(Protocol):
    """The part of ``LayerPool`` that is needed here."""

    async def build_chain(self, indexes: Sequence[bytes]) -> BuiltChain: ...


class Chains:
    """Knows which layers a chain has, and builds what a node mounts. Any prefix of an image is a chain."""

    def __init__(
        self, tables: IngestTables, writer: Writer, layers: Layers, pool: ChainPool, tasks: Tasks, changes: Changes
    ) -> None:
        self._tables = tables
        self._writer = writer
        self._layers = layers
        self._pool = pool
        self._changes = changes
        self._flights: SingleFlight[str, BuiltRecord] = SingleFlight(tasks)
        self._maps: OrderedDict[str, ChunkMap] = OrderedDict()

    async def remember(self, diff_ids: Sequence[Digest]) -> str:
        """Note a chain and all its prefixes; return its chainID (empty for no layers)."""
        ids = [str(chain) for chain in chain_ids(diff_ids)]
        links = [
            (chain, ChainLink(parent=parent, diff_id=str(diff_id)))
            for chain, parent, diff_id in zip(ids, ["", *ids], diff_ids, strict=False)
        ]
        if links and self.diff_ids(ids[-1]) is None:
            await self._writer.run(self._put_links, links)
        return ids[-1] if ids else ""

    def diff_ids(self, chain_id: str) -> tuple[str, ...] | None:
        """The chain's layers, lowest first; ``None`` = never heard of it."""
        layers: list[str] = []
        while chain_id:
            link = found(self._tables.links, chain_id)
            if link is None or len(layers) > MAX_LAYERS:
                return None
            layers.append(link.diff_id)
            chain_id = link.parent
        return tuple(reversed(layers)) if layers else None

    def prefixes(self, chain_id: str) -> list[str]:
        """The chain and its parents, as far as they are known."""
        chains: list[str] = []
        while chain_id and len(chains) <= MAX_LAYERS and (link := found(self._tables.links, chain_id)) is not None:
            chains.append(chain_id)
            chain_id = link.parent
        return chains

    def built(self, chain_id: str) -> BuiltRecord | None:
        return found(self._tables.built, chain_id)

    def is_building(self, chain_id: str) -> bool:
        return chain_id in self._flights

    async def ensure(self, chain_id: str) -> BuiltRecord:
        """Build the chain unless it is there, ingesting its layers first where need be.

        Raise ``ChainUnknownError``, ``LayerFailedError``, or ``ImageError`` for layers that make no tree.
        """
        return self.built(chain_id) or await self._flights.get(chain_id, lambda: self._build(chain_id))

    async def artifact(self, chain_id: str, kind: ArtifactKind) -> ArtifactRecord:
        """A bootstrap or chunk map, checked when read; a damaged one is built again. Raises as ``ensure``."""
        for _ in range(2):
            await self.ensure(chain_id)
            record = await asyncio.to_thread(self._load, chain_id, kind)
            if record is not None:
                return record
            log.warning("%s of chain %s is damaged: building it again", kind, chain_id)
            await self.forget(chain_id)
        raise IndexFormatError(f"{kind} of chain {chain_id} is damaged again right after it was built")

    async def chunk_map(self, chain_id: str) -> ChunkMap:
        """The opened chunk map. Raises as ``ensure``."""
        chunk_map = self._maps.get(chain_id)
        if chunk_map is None:
            record = await self.artifact(chain_id, "chunkmap")
            chunk_map = self._maps[chain_id] = await asyncio.to_thread(_open_map, record)
            while len(self._maps) > _OPEN_MAPS:
                self._maps.popitem(last=False)
        else:
            self._maps.move_to_end(chain_id)
        return chunk_map

    async def bootstrap(self, chain_id: str) -> bytes:
        """Raises as ``ensure``."""
        return await asyncio.to_thread(plain, await self.artifact(chain_id, "bootstrap"))

    async def layers_of_places(self, chain_id: str) -> tuple[tuple[str, ...], bytes]:
        """The layers, lowest first, and which of them brought each chunk: u16 for each place of the chunk map.

        Raises as ``ensure``. Reads every layer's index: half a second for 45,000 files.
        """
        pieces = await self.chunk_map(chain_id)
        diff_ids = self.diff_ids(chain_id)
        if diff_ids is None:
            raise ChainUnknownError(chain_id)
        indexes = [await self._index(diff_id) for diff_id in diff_ids]
        return diff_ids, await asyncio.to_thread(_layers_of_places, indexes, pieces)

    async def forget(self, chain_id: str) -> None:
        """Drop what was built of the chain; its layers stay known."""
        self._maps.pop(chain_id, None)
        await self._writer.run(self._drop_built, chain_id)

    async def forget_link(self, chain_id: str) -> None:
        await self.forget(chain_id)
        await self._writer.run(self._tables.links.delete, chain_id)

    async def _build(self, chain_id: str) -> BuiltRecord:
        diff_ids = self.diff_ids(chain_id)
        if diff_ids is None:
            raise ChainUnknownError(chain_id)
        indexes = [await self._index(diff_id) for diff_id in diff_ids]
        built = await self._pool.build_chain(indexes)
        record, artifacts = await asyncio.to_thread(_records, built)
        await self._writer.run(self._put_built, chain_id, record, artifacts)
        self._changes.notify()
        log.info(
            "chain %s built: %d layers, %d entries, %d chunks, bootstrap %d bytes",
            chain_id,
            len(diff_ids),
            built.entries,
            built.chunks,
            record.bootstrap_bytes,
        )
        return record

    async def _index(self, diff_id: str) -> bytes:
        await self._layers.ensure(diff_id)
        try:
            return await self._layers.index(diff_id)
        except IndexFormatError as exc:
            log.warning("%s: ingesting the layer again", exc)
            await self._layers.forget_index(diff_id)
            await self._layers.ensure(diff_id)
            return await self._layers.index(diff_id)

    def _put_links(self, links: Sequence[tuple[str, ChainLink]]) -> None:
        with self._tables.database.write():
            for chain_id, link in links:
                self._tables.links.put(chain_id, link)

    def _put_built(
        self, chain_id: str, record: BuiltRecord, artifacts: Sequence[tuple[ArtifactKind, ArtifactRecord]]
    ) -> None:
        with self._tables.database.write():
            for kind, artifact in artifacts:
                self._tables.artifacts.put(artifact_key(chain_id, kind), artifact)
            self._tables.built.put(chain_id, record)

    def _drop_built(self, chain_id: str) -> None:
        with self._tables.database.write():
            self._tables.built.delete(chain_id)
            for kind in KINDS:
                self._tables.artifacts.delete(artifact_key(chain_id, kind))

    def _load(self, chain_id: str, kind: ArtifactKind) -> ArtifactRecord | None:
        """``None`` when it is absent, damaged, or not the one that ``built`` names."""
        artifact = found(self._tables.artifacts, artifact_key(chain_id, kind))
        record = found(self._tables.built, chain_id)
        if artifact is None or record is None:
            return None
        named = record.bootstrap_digest if kind == "bootstrap" else record.chunk_map_digest
        return artifact if artifact.digest == named else None


def _records(built: BuiltChain) -> tuple[BuiltRecord, list[tuple[ArtifactKind, ArtifactRecord]]]:
    bootstrap, chunk_map = _compressed(built.bootstrap), _compressed(built.chunk_map)
    record = BuiltRecord(
        bootstrap_digest=bootstrap.digest,
        bootstrap_bytes=bootstrap.plain_bytes,
        chunk_map_digest=chunk_map.digest,
        chunk_map_bytes=chunk_map.plain_bytes,
        device_bytes=built.device_bytes,
        content_bytes=built.content_bytes,
        chunks=built.chunks,
        entries=built.entries,
    )
    return record, [("bootstrap", bootstrap), ("chunkmap", chunk_map)]


def _compressed(plain: bytes) -> ArtifactRecord:
    data = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(plain)
    return ArtifactRecord(digest=str(Digest.of(plain)), plain_bytes=len(plain), data=data)


def plain(record: ArtifactRecord) -> bytes:
    """The artifact's uncompressed bytes; call from a thread. The record was verified when it was read."""
    return zstandard.ZstdDecompressor().decompress(record.data, max_output_size=record.plain_bytes)


def _layers_of_places(indexes: Sequence[bytes], pieces: ChunkMap) -> bytes:
    return place_layers(map(LayerIndex.from_bytes, indexes), pieces).tobytes()


def _open_map(record: ArtifactRecord) -> ChunkMap:
    return ChunkMap.open(plain(record))
