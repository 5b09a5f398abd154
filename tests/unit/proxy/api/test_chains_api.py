"""What nodes and people ask about chains."""

from __future__ import annotations

import msgspec
import pytest
import zstandard
from aiohttp import ClientError, ClientResponse
from fakes.api import Api
from fakes.ingest_parts import add_image, chunk_of, diff_id_of, layer_blob

from fastpull.cache.codec import encode
from fastpull.cache.digest import Digest, chain_ids
from fastpull.cache.wire import ChainLayers, ChainState, ErrorBody
from fastpull.image.errors import LayerDigestError
from fastpull.proxy.api.chains import accepts_zstd

BIG, SMALL = b"1" * 200_000, b"hello"
LOW, HIGH = layer_blob(("bin/a", BIG), ("etc/b", SMALL)), layer_blob(("bin/c", b"2" * 7000))
CHAINS = [str(chain) for chain in chain_ids(Digest.parse(diff_id_of(blob)) for blob in (LOW, HIGH))]
UNKNOWN = "sha256:" + "0" * 64


async def ready(api: Api) -> ChainState:
    record = await api.parts.images.learn("registry.test", "app", add_image(api.parts.mirror, [LOW, HIGH]))
    assert record is not None
    await api.parts.ingest.prepare(record.chain_id)
    return await api.parts.ingest.state(record.chain_id, 0)


async def test_a_chain_tells_its_state_as_json(api: Api) -> None:
    expected = await ready(api)

    answer = await api.client.get(f"/v1/chains/{CHAINS[1]}")

    assert answer.status == 200
    assert answer.content_type == "application/json"
    assert msgspec.json.decode(await answer.read(), type=ChainState) == expected


async def test_asking_for_a_chain_that_passed_by_begins_its_ingest(api: Api) -> None:
    await api.parts.images.learn("registry.test", "app", add_image(api.parts.mirror, [LOW, HIGH]))

    answer = await api.client.get(f"/v1/chains/{CHAINS[1]}?wait=30")

    assert msgspec.json.decode(await answer.read(), type=ChainState).state == "ready"


async def test_a_failed_and_an_unknown_chain_are_answers_not_errors(api: Api) -> None:
    api.parts.pool.failures[diff_id_of(LOW)] = [LayerDigestError("the diffID differs")]
    await api.parts.images.learn("registry.test", "app", add_image(api.parts.mirror, [LOW, HIGH]))

    failed = await api.client.get(f"/v1/chains/{CHAINS[1]}?wait=30")
    unknown = await api.client.get(f"/v1/chains/{UNKNOWN}?wait=30")

    assert (failed.status, unknown.status) == (200, 200)
    assert "the diffID differs" in msgspec.json.decode(await failed.read(), type=ChainState).error
    assert msgspec.json.decode(await unknown.read(), type=ChainState).state == "unknown"


async def test_a_chain_tells_which_layer_brought_which_chunk(api: Api) -> None:
    """For each place of its chunk map, so that a start can be told by layers."""
    state = await ready(api)

    answer = await api.client.get(f"/v1/chains/{CHAINS[1]}/layers")
    unknown = await api.client.get(f"/v1/chains/{UNKNOWN}/layers")

    layers = msgspec.json.decode(await answer.read(), type=ChainLayers)
    assert layers.diff_ids == (diff_id_of(LOW), diff_id_of(HIGH))
    assert len(layers.of_places) == 2 * state.chunks
    assert set(layers.of_places[::2]) == {0, 1}
    assert unknown.status == 404


@pytest.mark.parametrize(("kind", "field"), [("bootstrap", "bootstrap_digest"), ("chunkmap", "chunk_map_digest")])
async def test_an_artifact_comes_compressed_if_that_is_understood_and_names_its_digest(
    api: Api, kind: str, field: str
) -> None:
    state = await ready(api)
    url = f"/v1/chains/{CHAINS[1]}/{kind}"

    plain = await api.client.get(url, headers={"Accept-Encoding": "identity"})
    packed = await api.client.get(url, headers={"Accept-Encoding": "gzip, zstd"})

    body = await plain.read()
    assert "Content-Encoding" not in plain.headers
    assert packed.headers["Content-Encoding"] == "zstd"
    assert zstandard.ZstdDecompressor().decompress(await packed.read()) == body
    for answer in (plain, packed):
        assert answer.headers["X-Content-Digest"] == str(Digest.of(body)) == getattr(state, field)
        assert "immutable" in answer.headers["Cache-Control"]
    assert (await api.client.get(url, headers={"If-None-Match": plain.headers["ETag"]})).status == 304


async def test_an_artifact_of_an_unknown_chain_is_404_with_the_reason(api: Api) -> None:
    answer = await api.client.get(f"/v1/chains/{UNKNOWN}/bootstrap")

    assert answer.status == 404
    assert "is not known" in msgspec.json.decode(await answer.read(), type=ErrorBody).error


async def test_an_artifact_of_a_broken_image_is_the_images_fault_not_the_proxys(api: Api) -> None:
    """A node takes 500 and above as a sign that the proxy is not well."""
    api.parts.pool.failures[diff_id_of(LOW)] = [LayerDigestError("the diffID differs")]
    await api.parts.images.learn("registry.test", "app", add_image(api.parts.mirror, [LOW, HIGH]))

    answer = await api.client.get(f"/v1/chains/{CHAINS[1]}/bootstrap")

    body = msgspec.json.decode(await answer.read(), type=ErrorBody)
    assert answer.status == 422
    assert "the diffID differs" in body.error
    assert body.remedy


@pytest.mark.parametrize(
    "path",
    ["/v1/chains/nonsense", "/v1/chains/sha256:00", f"/v1/chains/{UNKNOWN}?wait=soon", f"/v1/chains/{UNKNOWN}?wait=-1"],
)
async def test_a_wrong_request_is_400_with_the_reason(api: Api, path: str) -> None:
    answer = await api.client.get(path)

    assert answer.status == 400
    assert msgspec.json.decode(await answer.read(), type=ErrorBody).error


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("PATCH", "/v1/images", 405)])
async def test_an_unknown_route_is_told_as_json(api: Api, method: str, path: str, status: int) -> None:
    answer = await api.client.request(method, path)

    assert answer.status == status
    assert msgspec.json.decode(await answer.read(), type=ErrorBody).error


async def device(api: Api, **headers: str) -> ClientResponse:
    return await api.client.get(f"/v1/chains/{CHAINS[1]}/device", headers=headers)


async def test_any_client_can_read_any_range_of_the_device(api: Api) -> None:
    await ready(api)
    chunk_map = await api.parts.chains.chunk_map(CHAINS[1])
    whole = await (await device(api)).read()

    assert len(whole) == chunk_map.device_bytes
    for place in range(len(chunk_map)):
        start, size = chunk_map.offset_at(place), chunk_map.size_at(place)
        assert chunk_of(whole[start : start + size]) == chunk_map.id_at(place)
    for spec, start, stop in [
        ("bytes=0-0", 0, 1),
        ("bytes=199990-200100", 199_990, 200_101),
        ("bytes=-5", len(whole) - 5, len(whole)),
        ("bytes=204000-", 204_000, len(whole)),
    ]:
        part = await device(api, Range=spec)
        assert part.status == 206
        assert part.headers["Content-Range"] == f"bytes {start}-{stop - 1}/{len(whole)}"
        assert await part.read() == whole[start:stop]


async def test_what_lies_between_files_is_zero(api: Api) -> None:
    await ready(api)
    chunk_map = await api.parts.chains.chunk_map(CHAINS[1])
    end = chunk_map.offset_at(0) + chunk_map.size_at(0)

    gap = await (await device(api, Range=f"bytes={end}-{chunk_map.offset_at(1) - 1}")).read()

    assert gap == bytes(len(gap))
    assert len(gap) > 0


async def test_a_range_behind_the_end_is_416_with_the_size(api: Api) -> None:
    state = await ready(api)

    answer = await device(api, Range=f"bytes={state.device_bytes}-")

    assert answer.status == 416
    assert answer.headers["Content-Range"] == f"bytes */{state.device_bytes}"


async def test_a_head_of_the_device_tells_its_size(api: Api) -> None:
    state = await ready(api)

    answer = await api.client.head(f"/v1/chains/{CHAINS[1]}/device")

    assert int(answer.headers["Content-Length"]) == state.device_bytes
    assert answer.headers["Accept-Ranges"] == "bytes"


@pytest.mark.fault(
    "rot: chunks of the proxy, under a reader",
    done="evicted and flipped",
    promised="ingested again, the reader gets the right bytes",
)
async def test_evicted_and_damaged_chunks_are_ingested_again_under_the_reader(api: Api) -> None:
    await ready(api)
    whole = await (await device(api)).read()
    api.parts.store.drop([chunk_of(SMALL), chunk_of(BIG)])
    api.parts.store.put_many([(chunk_of(BIG), encode(b"rotten"))])

    assert await (await device(api)).read() == whole


async def test_what_can_not_be_had_again_cuts_the_answer_short(api: Api) -> None:
    """A reader must never take a short body for the whole."""
    await ready(api)
    api.parts.store.drop([chunk_of(BIG)])
    api.parts.pool.failures[diff_id_of(LOW)] = [LayerDigestError("gone bad")]

    with pytest.raises(ClientError):
        await (await device(api)).read()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", False),
        ("zstd", True),
        ("gzip, ZSTD", True),
        ("gzip;q=1.0, zstd;q=0.5", True),
        ("zstd; q=0", False),
        ("zstd;q=0.000", False),
        ("xzstd", False),
        ("*", False),
    ],
)
def test_zstd_is_sent_only_to_those_who_name_it(header: str, expected: bool) -> None:
    assert accepts_zstd(header) is expected
