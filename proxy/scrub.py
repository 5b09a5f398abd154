"""What a scrub of the proxy checks, and how each damaged thing comes back.

| kind | checked against | damaged ones |
|---|---|---|
| chunks | their ids | ingested again when a node asks for them |
| blobs | their digests | fetched again when somebody pulls them |
| layer indexes | checksum, format | the layer is ingested again |
| bootstraps, chunk maps | their digests, their chain's record | built again from the indexes |
| plans | checksum, their own figures | learned anew |
| manifests | their digests | fetched again |
| records | checksum | learned with the next pull |

Partial blobs are not checked: a fill verifies them from the first byte when it goes on.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import zstandard

from fastpull.cache.digest import CHUNK_ID_BYTES, ChunkId, Digest
from fastpull.cache.errors import MalformedDigestError, RecordDamagedError, RecordForeignError
from fastpull.cache.scrub import Check, Damage, Step
from fastpull.cache.scrub_chunks import ChunksCheck
from fastpull.cache.scrub_files import sha256_in_steps
from fastpull.cache.scrub_tables import TableCheck
from fastpull.cache.store import ChunkStore
from fastpull.cache.tables import Database
from fastpull.cache.writer import Writer
from fastpull.image import layer_index, plan
from fastpull.image.errors import IndexFormatError
from fastpull.image.layer_index import LayerIndex
from fastpull.image.plan import LearnedPlan
from fastpull.proxy.ingest.chains import Chains, plain
from fastpull.proxy.ingest.layers import Layers
from fastpull.proxy.ingest.state import ArtifactRecord, IngestTables, LayerRecord, found
from fastpull.proxy.mirror.blobs import Blobs
from fastpull.proxy.mirror.manifests import MANIFESTS_TABLE, TAGS_TABLE, ManifestRecord
from fastpull.proxy.mirror.service import SIZES_TABLE
from fastpull.proxy.mirror.tag_policy import TagRecord


def checks_of_proxy(
    store: ChunkStore,
    store_writer: Writer,
    database: Database,
    writer: Writer,
    blobs: Blobs,
    layers: Layers,
    chains: Chains,
) -> list[Check]:
    """All checks, what nodes need first."""
    tables = IngestTables.of(database)

    async def drop_chunks(chunks: Sequence[ChunkId]) -> int:
        return await store_writer.run(store.drop, chunks)

    async def forget_chain_of(key: str) -> None:
        await chains.forget(key.partition("/")[0])

    return [
        ChunksCheck(store, drop_chunks),
        BlobsCheck(blobs),
        TableCheck("layer indexes", database, tables.indexes, writer, verify=verify_index, drop=layers.forget_index),
        TableCheck(
            "bootstraps and chunk maps",
            database,
            tables.artifacts,
            writer,
            verify=functools.partial(verify_artifact, tables),
            drop=forget_chain_of,
        ),
        TableCheck("plans", database, database.table("plans", LearnedPlan), writer, verify=verify_plan),
        TableCheck(
            "manifests", database, database.table(MANIFESTS_TABLE, ManifestRecord), writer, verify=verify_manifest
        ),
        TableCheck("tags", database, database.table(TAGS_TABLE, TagRecord), writer),
        TableCheck("images", database, tables.images, writer),
        TableCheck(
            "layers",
            database,
            tables.layers,
            writer,
            verify=functools.partial(verify_layer, tables),
            drop=functools.partial(drop_layer, tables, layers),
        ),
        TableCheck("chain links", database, tables.links, writer),
        TableCheck("chain records", database, tables.built, writer, drop=chains.forget),
        TableCheck("blob sizes", database, database.table(SIZES_TABLE, int), writer),
    ]


class BlobsCheck:
    """Complete blobs against their digests."""

    kind = "blobs"

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def total(self) -> int:
        return sum(1 for _ in self._blobs.files.digests())

    def steps(self) -> Iterator[Step]:
        for digest in self._blobs.files.digests():
            try:
                found_hex = yield from sha256_in_steps(self._blobs.files.path(digest))
            except FileNotFoundError:
                continue  # evicted meanwhile
            except OSError as exc:
                yield Step(checked=1, damaged=(Damage(str(digest), f"blob {digest} can not be read: {exc}"),))
                continue
            if found_hex == digest.hex:
                yield Step(checked=1)
            else:
                yield Step(checked=1, damaged=(Damage(str(digest), f"blob {digest} has other bytes"),))

    async def drop(self, damage: Damage) -> bool:
        digest = Digest.parse(damage.key)
        self._blobs.drop(digest)
        return not self._blobs.has(digest)


def verify_index(diff_id: str, data: bytes) -> int:
    """Raise ``RecordForeignError`` or ``RecordDamagedError``."""
    if layer_index.is_newer(data):
        raise RecordForeignError("indexes", diff_id, "it is of a newer version")
    try:
        LayerIndex.from_bytes(data)
    except IndexFormatError as exc:
        raise RecordDamagedError("indexes", diff_id, str(exc)) from exc
    return len(data)


def verify_artifact(tables: IngestTables, key: str, record: ArtifactRecord) -> int:
    """Against its digest, and that against its chain's record. Raise ``RecordDamagedError``."""
    chain_id, _, kind = key.partition("/")
    try:
        digest = str(Digest.of(plain(record)))
    except zstandard.ZstdError as exc:
        raise RecordDamagedError("artifacts", key, str(exc)) from exc
    if digest != record.digest:
        raise RecordDamagedError("artifacts", key, f"its bytes have the digest {digest}")
    built = found(tables.built, chain_id)
    if built is not None and digest != (built.bootstrap_digest if kind == "bootstrap" else built.chunk_map_digest):
        raise RecordDamagedError("artifacts", key, "its chain's record names another digest")
    return len(record.data)


def verify_plan(chain_id: str, learned: LearnedPlan) -> int:
    """Raise ``RecordForeignError`` or ``RecordDamagedError``."""
    if learned.version > plan.VERSION:
        raise RecordForeignError("plans", chain_id, f"it is of version {learned.version}")
    count = len(learned.ids) // CHUNK_ID_BYTES
    if len(learned.ids) % CHUNK_ID_BYTES or not len(learned.weights) == len(learned.ranks) == 8 * count:
        raise RecordDamagedError("plans", chain_id, "its columns have different lengths")
    return len(learned.ids) + len(learned.weights) + len(learned.ranks)


def verify_manifest(key: str, record: ManifestRecord) -> int:
    """Raise ``RecordDamagedError``."""
    try:
        digest = Digest.parse(key.rpartition("@")[2])
    except MalformedDigestError as exc:
        raise RecordDamagedError(MANIFESTS_TABLE, key, str(exc)) from exc
    if Digest.of(record.body) != digest:
        raise RecordDamagedError(MANIFESTS_TABLE, key, "its bytes do not have its digest")
    return len(record.body)


def verify_layer(tables: IngestTables, diff_id: str, record: LayerRecord) -> int:
    """A layer that says it is indexed has an index, whole or not. Raise ``RecordDamagedError``."""
    if record.is_indexed and not tables.indexes.has(diff_id):
        raise RecordDamagedError("layers", diff_id, "it has no index")
    return 0


async def drop_layer(tables: IngestTables, layers: Layers, diff_id: str) -> None:
    """Where a layer can be had stays known, if that can be read."""
    if found(tables.layers, diff_id) is None:
        await layers.forget(diff_id)
    else:
        await layers.forget_index(diff_id)
