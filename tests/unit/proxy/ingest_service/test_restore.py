"""Evicted chunks come back from the layers that hold them; warm means that all are there."""

from __future__ import annotations

import asyncio

import pytest
from fakes.ingest_assembly import Parts
from fakes.ingest_parts import add_image, chunk_of, diff_id_of, layer_blob

from fastpull.cache.digest import Digest, chain_ids
from fastpull.image.errors import LayerDigestError
from fastpull.proxy.errors import UpstreamUnavailableError
from fastpull.proxy.ingest.failures import Failure, Failures
from fastpull.proxy.ingest.warm import TooManyWarmsError

LOW, HIGH = layer_blob(("bin/a", b"1" * 5000)), layer_blob(("bin/b", b"2" * 7000))
CHUNK_LOW, CHUNK_HIGH = chunk_of(b"1" * 5000), chunk_of(b"2" * 7000)
CHAIN = str(chain_ids(Digest.parse(diff_id_of(blob)) for blob in (LOW, HIGH))[-1])
NAME = "registry.test/app:1"


async def warmed(parts: Parts) -> None:
    add_image(parts.mirror, [LOW, HIGH])
    state = await parts.warms.start(NAME, None, wait_seconds=30)
    assert state.stage == "done", state.error


async def test_an_evicted_chunk_comes_back_from_its_layer_alone(parts: Parts) -> None:
    await warmed(parts)
    parts.store.drop([CHUNK_HIGH])

    assert await parts.restore.restore(CHAIN, [CHUNK_HIGH], 30)

    assert parts.store.has([CHUNK_HIGH]) == [True]
    assert [str(job.diff_id) for job in parts.pool.jobs[2:]] == [diff_id_of(HIGH)]


async def test_many_who_miss_chunks_of_one_layer_share_its_ingest(parts: Parts) -> None:
    await warmed(parts)
    parts.store.drop([CHUNK_LOW, CHUNK_HIGH])

    back = await asyncio.gather(*(parts.restore.restore(CHAIN, [chunk], 30) for chunk in [CHUNK_LOW, CHUNK_HIGH] * 10))

    assert all(back)
    assert len(parts.pool.jobs) == 4


async def test_a_chunk_that_no_layer_holds_is_not_waited_for(parts: Parts) -> None:
    await warmed(parts)

    assert not await parts.restore.restore(CHAIN, [chunk_of(b"nobody")], 30)
    assert len(parts.pool.jobs) == 2


async def test_a_registry_that_is_away_ends_the_wait(parts: Parts) -> None:
    await warmed(parts)
    parts.store.drop([CHUNK_LOW])
    parts.pool.failures[diff_id_of(LOW)] = [UpstreamUnavailableError("away")]

    assert not await parts.restore.restore(CHAIN, [CHUNK_LOW], 30)


async def test_a_chain_never_heard_of_brings_nothing_back(parts: Parts) -> None:
    assert not await parts.restore.restore(CHAIN, [CHUNK_LOW], 30)


async def test_a_wait_is_bounded(parts: Parts) -> None:
    await warmed(parts)
    parts.store.drop([CHUNK_LOW])
    parts.pool.gate = asyncio.Event()

    assert not await parts.restore.restore(CHAIN, [CHUNK_LOW], 0.05)

    parts.pool.gate.set()
    assert await parts.restore.restore(CHAIN, [CHUNK_LOW], 30)


async def test_warming_tells_what_was_new_and_the_second_time_that_nothing_was(parts: Parts) -> None:
    add_image(parts.mirror, [LOW, HIGH, LOW])

    first = await parts.warms.start("registry.test/app:1", None, wait_seconds=30)
    second = await parts.warms.start("registry.test/app:1", None, wait_seconds=30)

    assert (first.stage, second.stage) == ("done", "done")
    assert [layer.new_bytes for layer in first.layers] == [5000, 7000, 5000]
    assert [layer.new_bytes for layer in second.layers] == [0, 0, 0]
    assert first.id != second.id
    assert len(parts.pool.jobs) == 2
    assert parts.images.known()[0].warmed


async def test_warming_brings_evicted_chunks_back(parts: Parts) -> None:
    await warmed(parts)
    parts.store.drop([CHUNK_LOW])

    await warmed(parts)

    assert parts.store.has([CHUNK_LOW, CHUNK_HIGH]) == [True, True]


async def test_two_who_warm_the_same_image_share_a_job(parts: Parts) -> None:
    add_image(parts.mirror, [LOW])
    parts.pool.gate = asyncio.Event()
    one = await parts.warms.start(NAME, None, wait_seconds=0)
    two = await parts.warms.start("registry.test/app:1", None, wait_seconds=0)
    parts.pool.gate.set()

    assert one.id == two.id
    done = await parts.warms.get(one.id, wait_seconds=30)
    assert done is not None
    assert done.stage == "done"


async def test_a_warm_that_fails_says_why_and_what_to_do(parts: Parts) -> None:
    add_image(parts.mirror, [LOW])
    parts.pool.failures[diff_id_of(LOW)] = [LayerDigestError("the diffID differs")]

    state = await parts.warms.start(NAME, None, wait_seconds=30)

    assert state.stage == "failed"
    assert "the diffID differs" in state.error
    assert "push the image again" in state.remedy
    assert state.layers[0].stage == "failed"


async def test_a_warm_of_an_image_that_is_not_there_fails_with_its_name(parts: Parts) -> None:
    state = await parts.warms.start("registry.test/none:1", None, wait_seconds=30)

    assert state.stage == "failed"
    assert "registry.test/none has no manifest 1" in state.error


async def test_an_image_without_layers_is_warm_at_once(parts: Parts) -> None:
    add_image(parts.mirror, [])

    assert (await parts.warms.start(NAME, None, wait_seconds=30)).stage == "done"


async def test_a_job_nobody_knows_is_none(parts: Parts) -> None:
    assert await parts.warms.get("none") is None


async def test_more_warms_than_are_sensible_are_refused(parts: Parts) -> None:
    parts.pool.gate = asyncio.Event()
    for number in range(256):
        add_image(parts.mirror, [LOW], f"{number}")
        await parts.warms.start(f"registry.test/app:{number}", None, wait_seconds=0)

    with pytest.raises(TooManyWarmsError):
        await parts.warms.start("registry.test/app:one-more", None, wait_seconds=0)
    again = await parts.warms.start("registry.test/app:7", None, wait_seconds=0)

    assert again.image == "registry.test/app:7"
    parts.pool.gate.set()
    await parts.warms.get(again.id, wait_seconds=30)


def test_failures_are_bounded_the_oldest_go_first() -> None:
    failures = Failures(lambda: 0.0, most=2)
    for name in ("a", "b", "a", "c"):
        failures.put(name, Failure("why", "what to do", 1.0))

    assert list(failures) == ["a", "c"]
    assert failures.current("b") is None
