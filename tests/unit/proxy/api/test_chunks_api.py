"""Many chunk ids in, frames out: in order, whole, and what is gone comes back."""

from __future__ import annotations

import asyncio

import msgspec
import pytest
from fakes.api import Api
from fakes.ingest_parts import add_image, chunk_of, diff_id_of, layer_blob
from hypothesis import given
from hypothesis import strategies as st

from fastpull.cache.codec import decode, encode
from fastpull.cache.digest import ChunkId
from fastpull.cache.frames import FRAMES_TYPE, MAX_IDS, FrameReader, pack_ids
from fastpull.cache.memory_store import MemoryChunkStore
from fastpull.cache.store import Encoding, StoredChunk
from fastpull.cache.wire import ErrorBody
from fastpull.image.errors import LayerDigestError
from fastpull.proxy.api.chunk_blocks import gather

A, B = b"1" * 5000, b"2" * 7000
LOW, HIGH = layer_blob(("bin/a", A)), layer_blob(("bin/b", B))


def raw(content: bytes) -> StoredChunk:
    return StoredChunk(Encoding.RAW, len(content), content)


async def ready(api: Api) -> str:
    record = await api.parts.images.learn("registry.test", "app", add_image(api.parts.mirror, [LOW, HIGH]))
    assert record is not None
    await api.parts.ingest.prepare(record.chain_id)
    return record.chain_id


async def frames(api: Api, ids: list[ChunkId], query: str = "") -> list[StoredChunk | None]:
    answer = await api.client.post(f"/v1/chunks{query}", data=pack_ids(ids))
    assert answer.status == 200
    assert answer.content_type == FRAMES_TYPE
    reader = FrameReader()
    received = list(reader.feed(await answer.read()))
    assert reader.pending == 0
    return received


async def test_chunks_come_in_the_order_asked_for(api: Api) -> None:
    await ready(api)
    ids = [chunk_of(B), chunk_of(A), chunk_of(B)]

    received = await frames(api, ids)

    assert [decode(stored, chunk) for stored, chunk in zip(received, ids, strict=True) if stored] == [B, A, B]


async def test_a_missing_chunk_without_a_chain_is_said_to_be_missing(api: Api) -> None:
    await ready(api)

    received = await frames(api, [chunk_of(A), chunk_of(b"nobody"), chunk_of(B)])

    assert [stored is None for stored in received] == [False, True, False]


async def test_an_evicted_chunk_of_a_chain_comes_back_before_its_frame(api: Api) -> None:
    chain = await ready(api)
    api.parts.store.drop([chunk_of(B)])

    received = await frames(api, [chunk_of(A), chunk_of(B)], f"?chain={chain}")

    assert None not in received


async def test_a_chunk_that_can_not_come_back_is_said_to_be_missing(api: Api) -> None:
    chain = await ready(api)
    api.parts.store.drop([chunk_of(B)])
    api.parts.pool.failures[diff_id_of(HIGH)] = [LayerDigestError("gone bad")]

    received = await frames(api, [chunk_of(B), chunk_of(A)], f"?chain={chain}")

    assert [stored is None for stored in received] == [True, False]


async def test_a_damaged_chunk_is_replaced_when_verification_is_asked_for(api: Api) -> None:
    chain = await ready(api)
    api.parts.store.drop([chunk_of(B)])
    api.parts.store.put_many([(chunk_of(B), encode(b"rotten"))])

    received = await frames(api, [chunk_of(B)], f"?chain={chain}&verify=1")

    assert received[0] is not None
    assert decode(received[0], chunk_of(B)) == B


async def test_a_body_of_many_blocks_arrives_whole(api: Api) -> None:
    contents = [bytes([n]) * 100_000 for n in range(200)]
    ids = [chunk_of(content) for content in contents]
    api.parts.store.put_many(
        [(chunk, StoredChunk(0, 100_000, content)) for chunk, content in zip(ids, contents, strict=True)]
    )  # type: ignore[arg-type]  # 0 is RAW

    received = await frames(api, ids)

    assert [bytes(stored.data) for stored in received if stored] == contents


async def test_no_ids_give_no_frames(api: Api) -> None:
    assert await frames(api, []) == []


@pytest.mark.parametrize(
    ("body", "query", "status"),
    [
        pytest.param(b"x" * 31, "", 400, id="half an id"),
        pytest.param(bytes(32 * (MAX_IDS + 1)), "", 413, id="too many"),
        pytest.param(bytes(32), "?chain=nonsense", 400, id="a chain that is none"),
    ],
)
async def test_a_wrong_request_is_refused_with_the_reason(api: Api, body: bytes, query: str, status: int) -> None:
    answer = await api.client.post(f"/v1/chunks{query}", data=body)

    assert answer.status == status
    assert msgspec.json.decode(await answer.read(), type=ErrorBody).error


async def test_a_reader_that_leaves_does_not_disturb_others(api: Api) -> None:
    contents = [bytes([n]) * 500_000 for n in range(60)]
    ids = [chunk_of(content) for content in contents]
    api.parts.store.put_many(
        [(chunk, StoredChunk(0, 500_000, data)) for chunk, data in zip(ids, contents, strict=True)]
    )  # type: ignore[arg-type]  # 0 is RAW

    answer = await api.client.post("/v1/chunks", data=pack_ids(ids))
    await answer.content.read(10)
    answer.close()
    await asyncio.sleep(0)

    assert len(await frames(api, ids)) == 60


async def test_what_nodes_ask_for_counts_as_recently_served(api: Api) -> None:
    await ready(api)
    await frames(api, [chunk_of(A)])

    assert chunk_of(A) in api.services.recently_served
    assert chunk_of(B) not in api.services.recently_served


@given(
    sizes=st.lists(st.integers(1, 600_000), max_size=12),
    missing=st.sets(st.integers(0, 11)),
    skip_missing=st.booleans(),
)
def test_blocks_together_are_all_frames_in_order(sizes: list[int], missing: set[int], skip_missing: bool) -> None:
    """However the frames fall into blocks, none is lost, doubled or out of place."""
    store = MemoryChunkStore(quota_bytes=64 << 20)
    ids = [ChunkId(bytes([n]) * 32) for n in range(len(sizes))]
    for number, (chunk, size) in enumerate(zip(ids, sizes, strict=True)):
        if number not in missing:
            store.put_many([(chunk, raw(bytes([number]) * size))])

    received: list[StoredChunk | None] = []
    position = 0
    while position < len(ids):
        block = gather(store, ids, position, verify=False, skip_missing=skip_missing)
        received += FrameReader().feed(block.data)
        if block.stop == position:
            assert not skip_missing
            assert position in missing
            break
        position = block.stop

    expected = [None if n in missing else bytes([n]) * size for n, size in enumerate(sizes)][: len(received)]
    assert [None if stored is None else bytes(stored.data) for stored in received] == expected
    assert skip_missing is False or len(received) == len(sizes)
