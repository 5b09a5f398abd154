"""A layer is ingested once, counts only when it is right, and its failures hold for a while."""

from __future__ import annotations

import asyncio

import pytest
from fakes.ingest_assembly import Parts
from fakes.ingest_parts import add_image, diff_id_of, layer_blob

from fastpull.cache.digest import Digest
from fastpull.cache.errors import StoreFullError
from fastpull.image.errors import IndexFormatError, LayerDigestError, UnsupportedMediaTypeError
from fastpull.image.layer_index import LayerIndex
from fastpull.proxy.errors import BlobFillError, DeniedError, UpstreamUnavailableError
from fastpull.proxy.ingest.failures import LayerFailedError

BLOB = layer_blob(("bin/tool", b"tool" * 100), ("etc/motd", b"hello"))
DIFF = diff_id_of(BLOB)


async def learned(parts: Parts, *layers: bytes, tag: str = "1", repository: str = "app") -> None:
    manifest = add_image(parts.mirror, layers or (BLOB,), tag, repository=repository)
    await parts.images.learn("registry.test", repository, manifest)


async def test_a_layer_becomes_an_index_with_its_figures(parts: Parts) -> None:
    await learned(parts)

    await parts.layers.ensure(DIFF)

    progress = parts.layers.progress(DIFF)
    assert (progress.stage, progress.files, progress.content_bytes, progress.new_bytes) == ("ready", 2, 405, 405)
    assert progress.indexed_bytes == progress.blob_bytes == len(BLOB)
    assert LayerIndex.from_bytes(await parts.layers.index(DIFF)).diff_id == DIFF


async def test_everybody_who_asks_shares_one_ingest(parts: Parts) -> None:
    await learned(parts)

    await asyncio.gather(*(parts.layers.ensure(DIFF) for _ in range(20)))
    await parts.layers.ensure(DIFF)

    assert len(parts.pool.jobs) == 1
    assert parts.mirror.opened[str(Digest.of(BLOB))] == 1


async def test_layers_run_side_by_side_within_a_bound(parts: Parts) -> None:
    blobs = [layer_blob((f"file{n}", bytes([n]))) for n in range(9)]
    await learned(parts, *blobs)
    parts.pool.gate = asyncio.Event()

    waiting = asyncio.gather(*(parts.layers.ensure(diff_id_of(blob)) for blob in blobs))
    while parts.pool.running < 4:
        await asyncio.sleep(0.01)
    assert len(parts.layers.running()) == 4
    parts.pool.gate.set()
    await waiting

    assert parts.pool.most_running == 4


async def test_nothing_counts_when_the_blob_turns_out_wrong_at_its_end(parts: Parts) -> None:
    """The ingest may have finished on bytes whose digest is wrong in the end."""
    await learned(parts)
    parts.mirror.late_failures[str(Digest.of(BLOB))] = BlobFillError(Digest.of(BLOB), "wrong digest")

    with pytest.raises(LayerFailedError, match="wrong digest"):
        await parts.layers.ensure(DIFF)

    assert not parts.layers.is_ready(DIFF)
    assert parts.layers.progress(DIFF).stage == "failed"
    with pytest.raises(IndexFormatError):
        await parts.layers.index(DIFF)


@pytest.mark.parametrize(
    ("failure", "seconds"),
    [
        pytest.param(LayerDigestError("the diffID differs"), 600, id="the bytes are to blame"),
        pytest.param(UnsupportedMediaTypeError("application/x-strange"), 600, id="the media type is unknown"),
        pytest.param(UpstreamUnavailableError("connection refused"), 10, id="the registry is away"),
        pytest.param(StoreFullError("no room"), 10, id="the store is full"),
    ],
)
async def test_a_failure_is_answered_at_once_until_it_is_worth_another_attempt(
    parts: Parts, failure: Exception, seconds: float
) -> None:
    await learned(parts)
    parts.pool.failures[DIFF] = [failure]

    for _ in range(3):
        with pytest.raises(LayerFailedError, match=str(failure)):
            await parts.layers.ensure(DIFF)
    assert len(parts.pool.jobs) == 1
    assert str(failure) in parts.layers.progress(DIFF).error

    parts.clock.now += seconds + 1
    await parts.layers.ensure(DIFF)
    assert parts.layers.progress(DIFF).stage == "ready"


async def test_another_repository_that_has_the_layer_is_tried_before_giving_up(parts: Parts) -> None:
    await learned(parts, repository="private")
    await learned(parts, repository="public")
    await learned(parts, repository="private2")
    for repository in ("private", "private2"):
        del parts.mirror.contents["registry.test", repository, str(Digest.of(BLOB))]

    await parts.layers.ensure(DIFF)

    assert parts.layers.is_ready(DIFF)


async def test_an_image_that_lies_about_a_layer_does_not_spoil_it_for_others(parts: Parts) -> None:
    """Two images name the same diffID; one brings a blob that does not have it."""
    await learned(parts)
    lie = layer_blob(("lie", b"x"))
    await parts.images.learn(
        "registry.test", "evil", add_image(parts.mirror, [lie], repository="evil", diff_ids=[DIFF])
    )
    parts.pool.failures[DIFF] = [LayerDigestError("the diffID differs")]  # of the first that is tried: the liar

    await parts.layers.ensure(DIFF)

    assert [job.path.name for job in parts.pool.jobs] == [Digest.of(lie).hex, Digest.of(BLOB).hex]
    assert parts.layers.is_ready(DIFF)


async def test_a_blob_of_another_length_than_promised_is_not_ingested(parts: Parts) -> None:
    await learned(parts)
    digest = str(Digest.of(BLOB))
    parts.mirror.contents["registry.test", "app", digest] = BLOB + b" "

    with pytest.raises(LayerFailedError, match="the manifest says"):
        await parts.layers.ensure(DIFF)

    assert parts.pool.jobs == []


async def test_a_refusal_names_the_remedy(parts: Parts) -> None:
    await learned(parts)
    parts.mirror.blob_failures[str(Digest.of(BLOB))] = DeniedError("registry.test", "app")

    with pytest.raises(LayerFailedError) as failed:
        await parts.layers.ensure(DIFF)

    assert "credentials" in failed.value.failure.remedy


async def test_a_layer_nobody_has_named_fails_without_an_attempt(parts: Parts) -> None:
    with pytest.raises(LayerFailedError, match="no registry is known"):
        await parts.layers.ensure(DIFF)


async def test_a_second_ingest_does_not_change_what_the_first_brought(parts: Parts) -> None:
    await learned(parts)
    await parts.layers.ensure(DIFF)

    await parts.layers.restore(DIFF)

    assert len(parts.pool.jobs) == 2
    assert parts.layers.progress(DIFF).new_bytes == 405
