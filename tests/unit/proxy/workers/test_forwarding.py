"""What a follower does not know itself is asked of the leader, and nobody sees a difference."""

from __future__ import annotations

import asyncio
import gzip
import io
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from fakes.followers import Follower, follower_of
from fakes.loops import on_both_loops

BODY = random.Random(5).randbytes(3_000_000)


class PlayedLeader:
    """Keeps what it was asked, and answers by path."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, list[tuple[str, str]], bytes]] = []
        self.left = asyncio.Event()
        self.begun = asyncio.Event()
        self.sent = 0
        self.app = web.Application(client_max_size=1 << 26)
        self.app.router.add_route("*", "/{path:.*}", self._answer)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        match request.match_info["path"].rpartition("/")[2]:
            case "cut":
                return await self._cut(request)
            case "hang":
                return await self._hang()
            case "endless":
                return await self._endless(request)
            case "unchanged":
                return web.Response(status=304, headers={"ETag": '"x"'})
            case "pieces":
                return await self._pieces(request)
        self.seen.append((request.method, request.raw_path, list(request.headers.items()), await request.read()))
        headers = [
            ("Warning", '299 - "a"'),
            ("Warning", '299 - "b"'),
            ("X-Odd", "1"),
            ("Connection", "X-Hop"),
            ("X-Hop", "1"),
        ]
        return web.Response(status=203, body=BODY[:1000], headers=headers)

    async def _cut(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = len(BODY)
        await response.prepare(request)
        await response.write(BODY[:500_000])
        assert request.transport is not None
        request.transport.close()
        return response

    async def _hang(self) -> web.StreamResponse:
        self.begun.set()
        try:
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            self.left.set()
            raise
        raise AssertionError

    async def _endless(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 1 << 40
        await response.prepare(request)
        try:
            while True:
                await response.write(BODY[:65536])
                self.sent += 65536
        finally:
            self.left.set()

    async def _pieces(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for start in range(0, len(BODY), 100_000):
            await response.write(BODY[start : start + 100_000])
        return response


@pytest.fixture
async def leader() -> PlayedLeader:
    return PlayedLeader()


@pytest.fixture
async def follower(tmp_path: Path, leader: PlayedLeader) -> AsyncIterator[Follower]:
    async with follower_of(tmp_path, leader.app) as running:
        yield running


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def exchange(port: int, request: bytes) -> bytes:
    """One request on a connection of its own, byte for byte."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return answer


async def test_no_header_is_lost_and_none_is_added(follower: Follower, leader: PlayedLeader) -> None:
    request = (
        b"GET /v2/a%2Fb/manifests/x?ns=r.test&q=%20+ HTTP/1.1\r\nHost: mirror.example\r\nAccept: one\r\n"
        b"accept: two\r\nUser-Agent: tester\r\nX-Hop: 1\r\nConnection: close, X-Hop\r\nCookie: a=b\r\n\r\n"
    )

    answer = await exchange(follower.port, request)

    method, path, headers, body = leader.seen[0]
    assert (method, path, body) == ("GET", "/v2/a%2Fb/manifests/x?ns=r.test&q=%20+", b"")
    assert sorted((name.lower(), value) for name, value in headers) == [
        *(
            ("accept", "one"),
            ("accept", "two"),
            ("cookie", "a=b"),
            ("host", "mirror.example"),
            ("user-agent", "tester"),
        ),
    ]
    head, _, got = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 203 Non-Authoritative Information"
    names = sorted(line.partition(":")[0].lower() for line in lines[1:])
    expected = ["connection", "content-length", "content-type", "date", "server", "warning", "warning", "x-odd"]
    assert names == expected
    assert got == BODY[:1000]


async def test_head(follower: Follower, leader: PlayedLeader) -> None:
    async with follower.client.head(f"{follower.url}/v2/x/manifests/y") as answer:
        assert answer.status == 203
        assert answer.headers["Content-Length"] == "1000"
    assert leader.seen[0][0] == "HEAD"


async def test_an_answer_without_a_body(follower: Follower) -> None:
    async with follower.client.get(f"{follower.url}/v1/unchanged") as answer:
        assert (answer.status, answer.headers["ETag"], await answer.read()) == (304, '"x"', b"")


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_body_goes_on_as_it_came(framing: str, follower: Follower, leader: PlayedLeader) -> None:
    """Compressed stays compressed, and one with a length keeps it."""
    data = gzip.compress(BODY)

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(data), 70_000):
            yield data[start : start + 70_000]

    headers = {"Content-Encoding": "gzip", "Content-Type": "x/y"}
    body = io.BytesIO(data) if framing == "length" else pieces()
    async with follower.client.put(f"{follower.url}/v1/plan", data=body, headers=headers) as answer:
        assert answer.status == 203
    _, _, seen, got = leader.seen[0]
    assert got == BODY, "the played leader inflates"
    assert dict(seen).get("Content-Length") == (str(len(data)) if framing == "length" else None)
    assert dict(seen)["Content-Type"] == "x/y"


async def test_a_client_that_asks_first_is_told_to_go_on(follower: Follower, leader: PlayedLeader) -> None:
    lines = (b"POST /v1/warm HTTP/1.1", b"Host: x", b"Expect: 100-continue", b"Content-Length: 2", b"Connection: close")

    answer = await exchange(follower.port, b"\r\n".join((*lines, b"", b"{}")))

    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 203")
    assert leader.seen[0][3] == b"{}"


async def test_an_answer_without_a_length_comes_whole(follower: Follower) -> None:
    async with follower.client.get(f"{follower.url}/v1/pieces") as answer:
        assert answer.headers["Transfer-Encoding"] == "chunked"
        assert await answer.read() == BODY


async def test_a_short_answer_is_cut_here_too(follower: Follower) -> None:
    """Nobody waits for bytes that never come, or takes what came for whole."""
    async with follower.client.get(f"{follower.url}/v2/cut") as answer:
        assert answer.content_length == len(BODY)
        with pytest.raises(aiohttp.ClientPayloadError):
            async with asyncio.timeout(30):
                await answer.read()


async def test_the_leader_sees_a_client_leave_that_waits(follower: Follower, leader: PlayedLeader) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", follower.port)
    writer.write(b"GET /v1/hang HTTP/1.1\r\nHost: x\r\n\r\n")
    await asyncio.wait_for(leader.begun.wait(), 30)
    writer.transport.abort()

    await asyncio.wait_for(leader.left.wait(), 30)


async def test_the_leader_sees_a_client_leave_that_reads(follower: Follower, leader: PlayedLeader) -> None:
    async with follower.client.get(f"{follower.url}/v2/endless") as answer:
        await answer.content.readexactly(1 << 20)
        answer.close()

    await asyncio.wait_for(leader.left.wait(), 30)


async def test_a_slow_client_slows_the_leader_down(follower: Follower, leader: PlayedLeader) -> None:
    """What nobody takes is not kept here: the leader can not send more than the sockets hold."""
    _reader, writer = await asyncio.open_connection("127.0.0.1", follower.port, limit=1024)
    writer.write(b"GET /v2/endless HTTP/1.1\r\nHost: x\r\n\r\n")
    await until(lambda: leader.sent > 0)
    last = -1
    async with asyncio.timeout(60):
        while last != leader.sent:
            last = leader.sent
            await asyncio.sleep(0.5)
    assert leader.sent < 64 << 20
    writer.transport.abort()
    await asyncio.wait_for(leader.left.wait(), 30)


async def test_without_a_leader_it_is_503_in_the_words_of_each_api(follower: Follower, leader: PlayedLeader) -> None:
    await follower.leader.cleanup()

    async with follower.client.get(f"{follower.url}/v2/app/manifests/x?ns=r.test") as answer:
        assert answer.status == 503
        assert (await answer.json())["errors"][0]["code"] == "UNAVAILABLE"
    async with follower.client.get(f"{follower.url}/v1/status") as answer:
        assert answer.status == 503
        assert "first process" in (await answer.json())["error"]
    async with follower.client.get(f"{follower.url}/metrics") as answer:
        assert answer.status == 503
    assert follower.gone.is_set(), "and the process leaves"


@pytest.mark.parametrize("target", [b"*", b"http://other.example/v1/status", b"//x", b"/v1/\xff", b"/" + b"a" * 60_000])
async def test_odd_targets_are_answered(target: bytes, follower: Follower) -> None:
    answer = await exchange(follower.port, b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

    assert int(answer[9:12]) in (203, 400, 404)


async def test_metrics_are_brought_up_to_date_first(follower: Follower) -> None:
    async with follower.client.get(f"{follower.url}/metrics") as answer:
        assert answer.status == 203
    assert follower.told == 1


async def test_health_needs_no_leader(follower: Follower, leader: PlayedLeader) -> None:
    async with follower.client.get(f"{follower.url}/healthz") as answer:
        assert await answer.text() == "ok\n"
    assert leader.seen == []


@on_both_loops
async def test_many_at_once(tmp_path: Path) -> None:
    leader = PlayedLeader()
    async with follower_of(tmp_path, leader.app) as follower:

        async def one() -> bytes:
            async with follower.client.get(f"{follower.url}/v1/x") as answer:
                return await answer.read()

        assert set(await asyncio.gather(*(one() for _ in range(200)))) == {BODY[:1000]}
