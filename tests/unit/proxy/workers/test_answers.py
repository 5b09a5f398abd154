"""What a follower answers by itself is what the leader would have answered."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from fakes.followers import Follower, follower_of

from fastpull.cache.codec import decode, encode
from fastpull.cache.digest import ChunkId, Digest, chunk_id
from fastpull.cache.frames import FRAMES_TYPE, FrameReader, pack_ids
from fastpull.proxy.mirror.blob_heads import blob_headers

BLOB = random.Random(7).randbytes(3_000_000)
DIGEST = Digest.of(BLOB)
PATH = f"/v2/app/blobs/{DIGEST}?ns=r.test"
CONTENTS = [random.Random(n).randbytes(200_000) for n in range(12)]
CHUNKS = {chunk_id(content): encode(content) for content in CONTENTS}


class Asked:
    """A leader that knows the blob, and else only counts."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[bytes] = []
        self.app = web.Application()
        self.app.router.add_route("*", "/{path:.*}", self._answer)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request.method, request.raw_path))
        self.bodies.append(await request.read())
        if request.raw_path == PATH and "Range" not in request.headers:
            return web.Response(body=BLOB, headers=blob_headers(DIGEST, "r.test"))
        return web.Response(status=410, text="the leader's")


@pytest.fixture
async def leader() -> Asked:
    return Asked()


@pytest.fixture
async def follower(tmp_path: Path, leader: Asked) -> AsyncIterator[Follower]:
    async with follower_of(tmp_path, leader.app, chunks=CHUNKS) as running:
        (running.blobs / DIGEST.hex[:2]).mkdir()
        (running.blobs / DIGEST.hex[:2] / DIGEST.hex).write_bytes(BLOB)
        yield running


async def get(follower: Follower, path: str = PATH, **headers: str) -> tuple[int, dict[str, str], bytes]:
    async with follower.client.get(follower.url + path, headers=headers) as answer:
        return answer.status, dict(answer.headers), await answer.read()


async def test_the_leader_is_asked_once_for_a_blob(follower: Follower, leader: Asked) -> None:
    """Its answer tells that the blob may be given away; from then on the file is sent from here."""
    for _ in range(3):
        status, headers, body = await get(follower)
        assert (status, body) == (200, BLOB)
        assert headers["Docker-Content-Digest"] == str(DIGEST)
        assert headers["OCI-Namespace"] == "r.test"
    assert (await get(follower, Range="bytes=5-9"))[0::2] == (206, BLOB[5:10]), "the fast lane"
    assert (await get(follower, Range="bytes=5-9", Odd="1"))[0::2] == (206, BLOB[5:10]), "the long way"
    async with follower.client.head(follower.url + PATH) as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, str(len(BLOB)))
    assert leader.requests == [("GET", PATH)]
    report = follower.tally.take()
    assert report.blobs == (str(DIGEST),)


async def test_a_blob_that_is_removed_while_it_is_sent_comes_whole(follower: Follower) -> None:
    follower.shelf.learn(DIGEST, len(BLOB))
    async with follower.client.get(follower.url + PATH) as answer:
        first = await answer.content.readexactly(10_000)
        (follower.blobs / DIGEST.hex[:2] / DIGEST.hex).unlink()
        assert first + await answer.read() == BLOB


async def test_a_removed_blob_is_asked_for_again(follower: Follower, leader: Asked) -> None:
    follower.shelf.learn(DIGEST, len(BLOB))
    (follower.blobs / DIGEST.hex[:2] / DIGEST.hex).unlink()

    assert (await get(follower))[2] == BLOB
    assert len(leader.requests) == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"Range": "bytes=3000000-"},  # 416 is the leader's to say
        {"Via": "1.1 somebody", "Range": "bytes=0-1"},  # it may be a request of its own that comes back
    ],
)
async def test_in_doubt_the_leader_answers(headers: dict[str, str], follower: Follower, leader: Asked) -> None:
    follower.shelf.learn(DIGEST, len(BLOB))

    assert (await get(follower, **headers))[0] == 410
    assert len(leader.requests) == 1


async def post(follower: Follower, ids: list[ChunkId], query: str = "") -> tuple[int, bytes]:
    async with follower.client.post(f"{follower.url}/v1/chunks{query}", data=pack_ids(ids)) as answer:
        if answer.status == 200:
            assert answer.content_type == FRAMES_TYPE
            assert answer.content_length is not None
        return answer.status, await answer.read()


async def test_a_batch_of_chunks_from_the_store(follower: Follower, leader: Asked) -> None:
    """In the order asked for, more than one block of them; their use is reported."""
    ids = [*CHUNKS, *CHUNKS]
    status, body = await post(follower, ids, "?chain=sha256:" + "0" * 64)

    reader = FrameReader()
    frames = [frame for frame in reader.feed(body) if frame is not None]
    assert status == 200
    assert [decode(frame, chunk) for frame, chunk in zip(frames, ids, strict=True)] == CONTENTS * 2
    assert reader.pending == 0
    assert leader.requests == []
    told = follower.tally.take().chunks
    assert {told[i : i + 32] for i in range(0, len(told), 32)} == set(CHUNKS)


@pytest.mark.parametrize("case", ["missing", "verify", "malformed"])
async def test_other_batches_are_the_leaders(case: str, follower: Follower, leader: Asked) -> None:
    """It has missing chunks made again, drops damaged ones, and says what is wrong with a request."""
    ids = list(CHUNKS)
    if case == "missing":
        ids[5] = chunk_id(b"nobody has it")
    if case == "malformed":
        ids[5] = ChunkId(b"short")

    assert (await post(follower, ids, "?verify=1" if case == "verify" else ""))[0] == 410
    assert leader.bodies == [pack_ids(ids)]


async def test_a_batch_with_a_damaged_chunk_is_the_leaders(
    follower: Follower, leader: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for segment in (tmp_path / "chunks").glob("*.chunks"):
        segment.unlink()

    assert (await post(follower, list(CHUNKS)))[0] == 410


async def test_a_body_that_stops_half_way_harms_nobody(follower: Follower, leader: Asked) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", follower.port)
    writer.write(b"POST /v1/chunks HTTP/1.1\r\nHost: x\r\nContent-Length: 64\r\n\r\n" + b"x" * 10)
    await writer.drain()
    writer.transport.abort()

    assert (await post(follower, list(CHUNKS)))[0] == 200
    assert leader.requests == []


async def test_a_file_that_can_not_be_read_is_left_to_the_leader(
    follower: Follower, leader: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer that was begun is cut; the next one is the leader's, which drops the blob."""

    async def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    follower.shelf.learn(DIGEST, len(BLOB))
    monkeypatch.setattr("fastpull.proxy.mirror.sending.FileResponse.send", fail)
    with pytest.raises((aiohttp.ClientPayloadError, aiohttp.ClientConnectionError)):
        await get(follower)
    monkeypatch.undo()
    assert (await get(follower))[2] == BLOB
    assert len(leader.requests) == 1
