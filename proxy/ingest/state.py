"""What the ingest remembers: the records, and the tables that hold them.

| table | key | value | lost, it is |
|---|---|---|---|
| ``images`` | manifest digest | ``ImageRecord`` | learned with the next pull |
| ``layers`` | diffID | ``LayerRecord`` | learned with the next pull |
| ``indexes`` | diffID | ``LayerIndex.to_bytes`` | ingested again |
| ``links`` | chainID | ``ChainLink`` | learned with the next pull |
| ``built`` | chainID | ``BuiltRecord`` | built again |
| ``artifacts`` | chainID, ``/``, kind | ``ArtifactRecord`` | built again |

What belongs together is written in one transaction: an index with its layer's figures, artifacts with their
``BuiltRecord``. Values are checksummed by the tables; a damaged one counts as absent.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal, Self, TypeVar

import msgspec

from fastpull.cache.errors import RecordDamagedError
from fastpull.cache.tables import Database, Table

log = logging.getLogger(__name__)

T = TypeVar("T")

ArtifactKind = Literal["bootstrap", "chunkmap"]
TABLES = ("images", "layers", "indexes", "links", "built", "artifacts")


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all records: msgpack maps, so that fields can be added."""


class LayerSource(Record, frozen=True, kw_only=True):
    """One place where a layer's blob can be had. The same diffID may come in several compressions."""

    upstream: str
    repository: str
    digest: str
    media_type: str
    blob_bytes: int


class LayerRecord(Record, frozen=True, kw_only=True):
    """One layer, by its diffID. The figures are of its first ingest, zero before."""

    diff_id: str
    sources: tuple[LayerSource, ...]  # latest first
    is_indexed: bool = False  # blob digest and diffID were right, chunks and index are durable
    content_bytes: int = 0
    new_bytes: int = 0
    files: int = 0
    seconds: float = 0.0


class ChainLink(Record, frozen=True, kw_only=True):
    """A chain is its parent chain (empty for the first layer) and one more layer."""

    parent: str
    diff_id: str


class BuiltRecord(Record, frozen=True, kw_only=True):
    """A chain whose artifacts were built. Digests are sha256 of the uncompressed bytes."""

    bootstrap_digest: str
    bootstrap_bytes: int
    chunk_map_digest: str
    chunk_map_bytes: int
    device_bytes: int
    content_bytes: int
    chunks: int
    entries: int


class ArtifactRecord(Record, frozen=True, kw_only=True):
    """A bootstrap or a chunk map, zstd-compressed."""

    digest: str  # as in ``BuiltRecord``
    plain_bytes: int
    data: bytes


class ImageRecord(Record, frozen=True, kw_only=True):
    """One image of one platform."""

    manifest_digest: str
    upstream: str
    repository: str
    names: tuple[str, ...]  # references under which it was asked for, latest first
    platform: str
    config: bytes  # verbatim
    diff_ids: tuple[str, ...]
    layer_digests: tuple[str, ...]
    blob_bytes: int
    chain_id: str  # empty for an image without layers
    seen_at: float
    warmed: bool = False  # somebody asked for it to be kept


@dataclass(frozen=True, slots=True)
class IngestTables:
    """The ingest's tables in the proxy's database."""

    database: Database
    images: Table[ImageRecord]
    layers: Table[LayerRecord]
    indexes: Table[bytes]
    links: Table[ChainLink]
    built: Table[BuiltRecord]
    artifacts: Table[ArtifactRecord]

    @classmethod
    def of(cls, database: Database) -> Self:
        return cls(
            database=database,
            images=database.table("images", ImageRecord),
            layers=database.table("layers", LayerRecord),
            indexes=database.table("indexes", bytes),
            links=database.table("links", ChainLink),
            built=database.table("built", BuiltRecord),
            artifacts=database.table("artifacts", ArtifactRecord),
        )


def found(table: Table[T], key: str) -> T | None:
    """The value, or ``None`` where there is none or it is damaged: everything here can be had again."""
    try:
        return table.get(key)
    except RecordDamagedError as exc:
        log.warning("%s: treated as absent", exc)
        return None


def artifact_key(chain_id: str, kind: ArtifactKind) -> str:
    return f"{chain_id}/{kind}"
