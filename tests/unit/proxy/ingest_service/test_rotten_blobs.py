"""Blobs that were right when they came, and are not when a layer is ingested from them again."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, closing
from pathlib import Path

import pytest
from fakes.ingest_assembly import Parts, assemble
from fakes.ingest_parts import FakeHandle, FakeMirror, add_image, diff_id_of, layer_blob

from fastpull.cache.digest import Digest
from fastpull.cache.memory_store import MemoryChunkStore
from fastpull.cache.tables import Database
from fastpull.cache.tasks import Tasks
from fastpull.cache.writer import Writer
from fastpull.image.errors import LayerFormatError
from fastpull.proxy.ingest.failures import LayerFailedError
from fastpull.proxy.ingest.state import TABLES
from fastpull.proxy.mirror.blobs import BlobSource

LAYER = layer_blob(("etc/motd", b"hello\n" * 100))


class RottenMirror(FakeMirror):
    """Its blob is damaged until it is dropped, or stays so; then it has the right bytes."""

    stays = False

    @asynccontextmanager
    async def open(self, source: BlobSource, *, first_offset: int = 0) -> AsyncIterator[FakeHandle]:
        async with super().open(source, first_offset=first_offset) as handle:
            if str(source.digest) == str(Digest.of(LAYER)) and (self.stays or not self.dropped):
                handle.path.write_bytes(b"?" + LAYER[1:])
            yield handle


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    with closing(Database.open(tmp_path / "db", tables=TABLES, map_bytes=64 << 20)) as database:
        async with Writer() as writer, aclosing(Tasks()) as tasks:
            yield assemble(RottenMirror(tmp_path), database, MemoryChunkStore(quota_bytes=64 << 20), writer, tasks)


async def learned(parts: Parts) -> str:
    add_image(parts.mirror, [LAYER])
    await parts.images.resolve("registry.test/app:1", None)
    diff_id = diff_id_of(LAYER)
    parts.pool.failures[diff_id] = [LayerFormatError("no gzip")]
    return diff_id


async def test_a_rotten_blob_is_dropped_and_fetched_again(parts: Parts) -> None:
    """Within the same ingest: whoever waits for the layer notices nothing."""
    await parts.layers.ensure(await learned(parts))
    assert parts.mirror.dropped == [str(Digest.of(LAYER))]


async def test_a_layer_that_is_wrong_by_itself_is_not_fetched_again(parts: Parts) -> None:
    """Its blob has the digest that was promised: another copy would be no better."""
    diff_id = await learned(parts)
    parts.mirror.dropped.append("rot ends here")

    with pytest.raises(LayerFailedError, match="no gzip"):
        await parts.layers.ensure(diff_id)
    assert parts.mirror.dropped == ["rot ends here"]


async def test_a_blob_that_comes_back_rotten_ends_the_ingest(parts: Parts) -> None:
    """A disk that damages everything is no reason to go on for ever."""
    assert isinstance(parts.mirror, RottenMirror)
    parts.mirror.stays = True
    diff_id = await learned(parts)
    parts.pool.failures[diff_id] *= 5

    with pytest.raises(LayerFailedError, match="on our disk is damaged"):
        await parts.layers.ensure(diff_id)
    assert len(parts.mirror.dropped) == 1
