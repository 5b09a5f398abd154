"""From a manifest that passes to a chain that nodes can mount."""

from __future__ import annotations

import asyncio

import pytest
from fakes.ingest_assembly import Parts, assemble
from fakes.ingest_parts import add_image, diff_id_of, layer_blob

from fastpull.cache.digest import Digest, chain_ids
from fastpull.image.chunk_map import ChunkMap
from fastpull.image.errors import LayerDigestError
from fastpull.proxy.errors import UpstreamUnavailableError
from fastpull.proxy.ingest.chains import ChainUnknownError, plain
from fastpull.proxy.ingest.failures import LayerFailedError
from fastpull.proxy.ingest.state import artifact_key
from fastpull.proxy.mirror.manifests import StoredManifest
from fastpull.proxy.mirror.service import ManifestSeen

LOW, HIGH = layer_blob(("bin/a", b"1" * 5000)), layer_blob(("bin/b", b"2" * 7000))
CHAINS = [str(chain) for chain in chain_ids(Digest.parse(diff_id_of(blob)) for blob in (LOW, HIGH))]
UNKNOWN = "sha256:" + "0" * 64


def seen(manifest: StoredManifest, reference: str = "1") -> ManifestSeen:
    return ManifestSeen("registry.test", "app", reference, manifest)


async def test_a_manifest_that_passes_is_ingested_and_its_chain_built(parts: Parts) -> None:
    parts.ingest.on_manifest(seen(add_image(parts.mirror, [LOW, HIGH])))

    state = await parts.ingest.state(CHAINS[1], 30)

    assert state.state == "ready"
    assert [layer.stage for layer in state.layers] == ["ready", "ready"]
    assert state.content_bytes == 12000
    assert state.chunks == 2
    bootstrap = await parts.chains.artifact(CHAINS[1], "bootstrap")
    assert str(Digest.of(plain(bootstrap))) == state.bootstrap_digest
    assert len(plain(bootstrap)) == state.bootstrap_bytes
    chunk_map = ChunkMap.open(plain(await parts.chains.artifact(CHAINS[1], "chunkmap")))
    assert chunk_map.device_bytes == state.device_bytes


async def test_any_prefix_is_built_when_asked_for(parts: Parts) -> None:
    parts.ingest.on_manifest(seen(add_image(parts.mirror, [LOW, HIGH])))
    await parts.ingest.state(CHAINS[1], 30)

    quick = await parts.ingest.state(CHAINS[0], 0, build=False)
    assert (quick.state, quick.bootstrap_digest) == ("ready", "")
    built = await parts.ingest.state(CHAINS[0], 30)
    assert built.state == "ready"
    assert built.content_bytes == 5000


async def test_a_chain_never_heard_of_is_unknown_at_once(parts: Parts) -> None:
    state = await parts.ingest.state(UNKNOWN, 30)

    assert state.state == "unknown"
    with pytest.raises(ChainUnknownError):
        await parts.chains.ensure(UNKNOWN)


async def test_a_node_may_ask_while_the_config_is_still_on_its_way(parts: Parts) -> None:
    """containerd asks for the chain as soon as it has the config; we may be a moment behind."""
    parts.ingest.on_manifest(seen(add_image(parts.mirror, [LOW, HIGH])))

    assert parts.chains.diff_ids(CHAINS[1]) is None
    assert (await parts.ingest.state(CHAINS[1], 30)).state == "ready"


async def test_while_a_layer_runs_the_state_says_how_far_it_is(parts: Parts) -> None:
    parts.pool.gate = asyncio.Event()
    parts.ingest.on_manifest(seen(add_image(parts.mirror, [LOW, HIGH])))
    while parts.pool.running < 2:
        await asyncio.sleep(0.01)

    state = await parts.ingest.state(CHAINS[1], 0)

    assert state.state == "indexing"
    assert [layer.stage for layer in state.layers] == ["fetching", "fetching"]
    parts.pool.gate.set()
    assert (await parts.ingest.state(CHAINS[1], 30)).state == "ready"


async def test_a_failed_layer_fails_the_chain_at_once_and_not_its_neighbours(parts: Parts) -> None:
    parts.pool.failures[diff_id_of(HIGH)] = [LayerDigestError("the diffID differs")]
    parts.ingest.on_manifest(seen(add_image(parts.mirror, [LOW, HIGH])))

    state = await parts.ingest.state(CHAINS[1], 30)

    assert state.state == "failed"
    assert "the diffID differs" in state.error
    assert (await parts.ingest.state(CHAINS[0], 30)).state == "ready"


async def test_when_the_proxy_stops_nobody_is_kept_waiting(parts: Parts) -> None:
    parts.pool.gate = asyncio.Event()
    parts.ingest.on_manifest(seen(add_image(parts.mirror, [LOW, HIGH])))
    while parts.pool.running < 2:
        await asyncio.sleep(0.01)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        waiting = group.create_task(parts.ingest.state(CHAINS[1], 1000))
        await asyncio.sleep(0)
        parts.ingest.stop_waiting()

    assert waiting.result().state == "indexing"
    parts.pool.gate.set()
    await parts.ingest.prepare(CHAINS[1])


async def test_after_a_while_a_failed_chain_is_tried_again(parts: Parts) -> None:
    parts.pool.failures[diff_id_of(HIGH)] = [UpstreamUnavailableError("away")]
    parts.ingest.on_manifest(seen(add_image(parts.mirror, [LOW, HIGH])))
    assert (await parts.ingest.state(CHAINS[1], 30)).state == "failed"

    parts.clock.now += 11

    assert (await parts.ingest.state(CHAINS[1], 30)).state == "ready"


async def test_on_warm_a_passing_manifest_is_learned_but_not_ingested(parts: Parts) -> None:
    parts = again(parts, trigger="on-warm")
    parts.ingest.on_manifest(seen(add_image(parts.mirror, [LOW, HIGH])))

    state = await parts.ingest.state(CHAINS[1], 30)

    assert (state.state, state.error) == ("unknown", "not warmed")
    assert parts.pool.jobs == []
    await parts.ingest.prepare(CHAINS[1])
    assert (await parts.ingest.state(CHAINS[1], 0)).state == "ready"


async def test_layers_are_shared_between_images(parts: Parts) -> None:
    other = layer_blob(("bin/c", b"3"))
    parts.ingest.on_manifest(seen(add_image(parts.mirror, [LOW, HIGH], "1")))
    await parts.ingest.state(CHAINS[1], 30)

    parts.ingest.on_manifest(seen(add_image(parts.mirror, [LOW, other], "2"), "2"))
    chain = str(chain_ids(Digest.parse(diff_id_of(blob)) for blob in (LOW, other))[-1])

    assert (await parts.ingest.state(chain, 30)).state == "ready"
    assert len(parts.pool.jobs) == 3


async def test_a_herd_that_pulls_one_image_has_it_learned_once(parts: Parts) -> None:
    manifest = add_image(parts.mirror, [LOW])
    for _ in range(500):
        parts.ingest.on_manifest(seen(manifest))
    await parts.ingest.state(CHAINS[0], 30)

    config = [digest for digest in parts.mirror.opened if digest != str(Digest.of(LOW))]
    assert [parts.mirror.opened[digest] for digest in config] == [1]
    assert len(parts.pool.jobs) == 1


@pytest.mark.fault(
    "rot: bootstrap or chunk map of the proxy",
    done="a byte flipped",
    promised="built again from the layer indexes",
)
@pytest.mark.parametrize("kind", ["bootstrap", "chunkmap"])
async def test_a_damaged_artifact_is_built_again(parts: Parts, kind: str) -> None:
    parts.ingest.on_manifest(seen(add_image(parts.mirror, [LOW, HIGH])))
    state = await parts.ingest.state(CHAINS[1], 30)
    parts.tables.artifacts.delete(artifact_key(CHAINS[1], kind))  # type: ignore[arg-type]

    record = await parts.chains.artifact(CHAINS[1], kind)  # type: ignore[arg-type]

    assert record.digest in (state.bootstrap_digest, state.chunk_map_digest)
    assert parts.pool.built == 2


async def test_a_lost_index_is_ingested_again_when_it_is_needed(parts: Parts) -> None:
    parts.ingest.on_manifest(seen(add_image(parts.mirror, [LOW, HIGH])))
    await parts.ingest.state(CHAINS[1], 30)
    parts.tables.indexes.delete(diff_id_of(LOW))

    await parts.chains.forget(CHAINS[1])
    await parts.chains.ensure(CHAINS[1])

    assert len(parts.pool.jobs) == 3


async def test_after_a_restart_everything_ready_is_ready_and_the_rest_resumes_on_demand(parts: Parts) -> None:
    parts.pool.failures[diff_id_of(HIGH)] = [UpstreamUnavailableError("killed")]
    parts.ingest.on_manifest(seen(add_image(parts.mirror, [LOW, HIGH])))
    await parts.ingest.state(CHAINS[1], 30)
    await parts.layers.ensure(diff_id_of(LOW))

    parts = again(parts)

    assert parts.layers.is_ready(diff_id_of(LOW))
    assert (await parts.ingest.state(CHAINS[1], 30)).state == "ready"
    assert [str(job.diff_id) for job in parts.pool.jobs] == [diff_id_of(HIGH)]


async def test_a_failure_of_a_layer_reaches_whoever_waits_for_the_chain(parts: Parts) -> None:
    manifest = add_image(parts.mirror, [LOW, HIGH])
    parts.pool.failures[diff_id_of(LOW)] = [LayerDigestError("the diffID differs")]
    record = await parts.images.learn("registry.test", "app", manifest)

    assert record is not None
    with pytest.raises(LayerFailedError, match="the diffID differs"):
        await parts.ingest.prepare(record.chain_id)


def again(parts: Parts, trigger: str = "on-pull") -> Parts:
    """The same database under new objects, as after a restart."""
    return assemble(
        parts.mirror,
        parts.tables.database,
        parts.store,
        parts.layers._writer,
        parts.chains._flights._tasks,
        trigger=trigger,  # type: ignore[arg-type]
    )


async def test_whoever_waits_for_an_index_makes_it_begin(parts: Parts) -> None:
    """A pull that asks without building still gets its layers indexed, when an earlier attempt has failed."""
    parts.pool.failures[diff_id_of(HIGH)] = [UpstreamUnavailableError("away")]
    parts.ingest.on_manifest(seen(add_image(parts.mirror, [LOW, HIGH])))
    assert (await parts.ingest.state(CHAINS[1], 30, build=False)).state == "failed"
    parts.clock.now += 11

    state = await parts.ingest.state(CHAINS[1], 30, build=False)

    assert state.state == "ready"
    assert [layer.stage for layer in state.layers] == ["ready", "ready"]
