"""What a scrub of the proxy takes for right, for damaged, and for somebody else's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import zstandard

from fastpull.cache.digest import Digest
from fastpull.cache.errors import RecordDamagedError, RecordForeignError
from fastpull.cache.tables import Database
from fastpull.image.layer_index import LayerIndex
from fastpull.image.plan import LearnedPlan
from fastpull.proxy.ingest.state import TABLES, ArtifactRecord, BuiltRecord, IngestTables, LayerRecord
from fastpull.proxy.mirror.manifests import ManifestRecord
from fastpull.proxy.scrub import verify_artifact, verify_index, verify_layer, verify_manifest, verify_plan

CHAIN = "sha256:" + "ab" * 32
INDEX = LayerIndex(CHAIN, []).to_bytes()
TREE = b"bootstrap" * 100
RIGHT = ArtifactRecord(
    digest=str(Digest.of(TREE)), plain_bytes=len(TREE), data=zstandard.ZstdCompressor().compress(TREE)
)
BUILT = BuiltRecord(
    bootstrap_digest=RIGHT.digest,
    bootstrap_bytes=len(TREE),
    chunk_map_digest="sha256:" + "0" * 64,
    chunk_map_bytes=1,
    device_bytes=1,
    content_bytes=1,
    chunks=1,
    entries=1,
)


@pytest.fixture
def tables(tmp_path: Path) -> Iterator[IngestTables]:
    with closing(Database.open(tmp_path, tables=TABLES, map_bytes=1 << 20)) as database:
        yield IngestTables.of(database)


def test_an_index_of_this_version_is_right() -> None:
    assert verify_index(CHAIN, INDEX) == len(INDEX)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"FPLI\x02" + INDEX[5:], RecordForeignError),
        (b"FPLI\xff", RecordForeignError),
        (INDEX[:-1], RecordDamagedError),
        (b"", RecordDamagedError),
        (b"rubbish", RecordDamagedError),
    ],
)
def test_an_index_that_can_not_be_read_is_damaged_or_newer(data: bytes, error: type[Exception]) -> None:
    with pytest.raises(RecordDamagedError) as caught:
        verify_index(CHAIN, data)
    assert type(caught.value) is error


def test_an_artifact_is_checked_against_its_digest_and_its_chain(tables: IngestTables) -> None:
    key = f"{CHAIN}/bootstrap"
    assert verify_artifact(tables, key, RIGHT) == len(RIGHT.data), "a chain without a record may be just being built"
    tables.built.put(CHAIN, BUILT)
    assert verify_artifact(tables, key, RIGHT) == len(RIGHT.data)

    for record in (
        msgspec.structs.replace(RIGHT, digest="sha256:" + "1" * 64),
        msgspec.structs.replace(RIGHT, data=RIGHT.data[:-3]),
        msgspec.structs.replace(RIGHT, data=b""),
    ):
        with pytest.raises(RecordDamagedError):
            verify_artifact(tables, key, record)
    with pytest.raises(RecordDamagedError, match="names another digest"):
        verify_artifact(tables, f"{CHAIN}/chunkmap", RIGHT)


@pytest.mark.parametrize(
    ("plan", "error"),
    [
        (LearnedPlan(chain_id=CHAIN, ids=bytes(64), weights=bytes(16), ranks=bytes(16)), None),
        (LearnedPlan(chain_id=CHAIN), None),
        (LearnedPlan(chain_id=CHAIN, ids=bytes(63)), RecordDamagedError),
        (LearnedPlan(chain_id=CHAIN, ids=bytes(64), weights=bytes(8), ranks=bytes(16)), RecordDamagedError),
        (LearnedPlan(chain_id=CHAIN, version=2, ids=bytes(63)), RecordForeignError),
    ],
)
def test_a_plan_has_columns_of_one_length(plan: LearnedPlan, error: type[Exception] | None) -> None:
    if error is None:
        verify_plan(CHAIN, plan)
        return
    with pytest.raises(RecordDamagedError) as caught:
        verify_plan(CHAIN, plan)
    assert type(caught.value) is error


def test_a_manifest_has_the_bytes_of_its_digest() -> None:
    body = b'{"schemaVersion": 2}'
    key = f"docker.io/library/python@{Digest.of(body)}"
    assert verify_manifest(key, ManifestRecord("application/json", body)) == len(body)
    for wrong, record in (
        (key, ManifestRecord("application/json", body + b" ")),
        ("docker.io/library/python@latest", ManifestRecord("application/json", body)),
    ):
        with pytest.raises(RecordDamagedError):
            verify_manifest(wrong, record)


def test_a_layer_that_says_it_is_indexed_has_an_index(tables: IngestTables) -> None:
    """Else it would count as ready, and be found out by the first chain that needs it."""
    record = LayerRecord(diff_id=CHAIN, sources=(), is_indexed=True)
    with pytest.raises(RecordDamagedError, match="no index"):
        verify_layer(tables, CHAIN, record)
    tables.indexes.put(CHAIN, INDEX)
    verify_layer(tables, CHAIN, record)
