"""The fast lane answers as aiohttp would, or leaves it to aiohttp."""

import asyncio
import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fakes.loops import on_both_loops
from fakes.mirror import RunningMirror, running_mirror, settings_for, until
from fakes.registry import FakeRegistry
from hypothesis import given
from hypothesis import strategies as st

from fastpull.cache.digest import Digest
from fastpull.proxy.mirror.fast_lane import FastLane, parse_simple_get

BLOB = random.Random(3).randbytes(5_000_000)


@asynccontextmanager
async def warm(tmp_path: Path, *, fast_lane: bool = True) -> AsyncIterator[tuple[RunningMirror, str]]:
    async with FakeRegistry() as registry:
        digest = registry.add_blob(BLOB)
        async with running_mirror(settings_for(tmp_path, {"r.test": registry}), fast_lane=fast_lane) as mirror:
            assert (await mirror.get(f"app/blobs/{digest}?ns=r.test")).body == BLOB
            await until(lambda: mirror.mirror.blobs.has(Digest.parse(digest)))
            yield mirror, digest


REQUESTS = [
    "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET {path} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-0\r\n\r\n",
    "GET {path} HTTP/1.1\r\nHost: x\r\nRange: bytes=100-262243\r\nAccept: */*\r\n\r\n",
    "GET {path} HTTP/1.1\r\nHost: x\r\nRange: bytes=4999999-\r\nAccept: */*\r\n\r\n",
    "GET {path} HTTP/1.1\r\nHost: x\r\nrange: bytes=-10\r\n\r\n",
    "GET {path} HTTP/1.1\r\nHost: x\r\nRange: bytes=5000000-\r\n\r\n",
    "GET {path} HTTP/1.1\r\nHost: x\r\nRange: bytes=1-2,4-5\r\nIgnored: 1\r\n\r\n",
    'GET {path} HTTP/1.1\r\nHost: x\r\nIf-Range: "other"\r\nRange: bytes=1-2\r\n\r\n',
    "GET {path} HTTP/1.0\r\nHost: x\r\nRange: bytes=1-2\r\n\r\n",
    "HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
    "GET /v2/app/blobs/sha256:00?ns=r.test HTTP/1.1\r\nHost: x\r\n\r\n",
]


async def answers(url: str, requests: list[bytes]) -> list[tuple[list[str], bytes]]:
    """Send the requests over one connection, one after the other; heads sorted, without dates and servers."""
    host, port = re.fullmatch(r"http://(.+):(\d+)", url).groups()  # type: ignore[union-attr]
    reader, writer = await asyncio.open_connection(host, int(port))
    got = []
    for request in requests:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = int(re.search(r"content-length: (\d+)", head, re.IGNORECASE).group(1))  # type: ignore[union-attr]
        body = b"" if request.startswith(b"HEAD") else await reader.readexactly(length)
        lines = [line for line in head.split("\r\n") if not line.startswith(("Date:", "Server:"))]
        got.append((sorted(lines), body))
        if "Connection: close" in head:
            break
    writer.close()
    await writer.wait_closed()
    return got


@on_both_loops
async def test_both_ways_give_the_same_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte for byte, heads included, in any order on one connection."""
    results = []
    fast_answers = []
    answer = FastLane.answer
    monkeypatch.setattr(
        FastLane, "answer", lambda lane, get: fast_answers.append(answer(lane, get)) or fast_answers[-1]
    )
    for fast in (True, False):
        async with warm(tmp_path / str(fast), fast_lane=fast) as (mirror, digest):
            path = f"/v2/app/blobs/{digest}?ns=r.test"
            requests = [request.format(path=path).encode() for request in REQUESTS if "1.0" not in request]
            async with asyncio.timeout(60):
                # Twice, so that the first of a connection, which is always aiohttp's, is covered too.
                got = await answers(mirror.url, requests + requests)
                got += await answers(mirror.url, [r.format(path=path).encode() for r in REQUESTS if "1.0" in r])
        results.append(got)

    assert results[0] == results[1]
    statuses = [next(line for line in head if line.startswith("HTTP/"))[9:12] for head, _ in results[0]]
    assert statuses[:11] == ["200", "206", "206", "206", "206", "416", "200", "200", "200", "200", "400"]
    assert sum(body is not None for body in fast_answers) >= 8
    assert sum(len(body) for _, body in results[0]) > 2 * len(BLOB)


@on_both_loops
async def test_a_client_that_reads_slowly_gets_all(tmp_path: Path) -> None:
    """The socket fills up in the middle of an answer; what else the client asks meanwhile waits its turn."""
    async with warm(tmp_path) as (mirror, digest):
        host, port = re.fullmatch(r"http://(.+):(\d+)", mirror.url).groups()  # type: ignore[union-attr]
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**16)
        path = f"/v2/app/blobs/{digest}?ns=r.test"
        count = 40
        for number in range(count):
            start = number * 100_000
            writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nRange: bytes={start}-{start + 999_999}\r\n\r\n".encode())
            if number == 0:
                await asyncio.sleep(0.05)  # alone, so that the others come while it is being sent
        async with asyncio.timeout(60):
            for number in range(count):
                await reader.readuntil(b"\r\n\r\n")
                assert await reader.readexactly(1_000_000) == BLOB[number * 100_000 :][:1_000_000]
        writer.close()
        await writer.wait_closed()


@on_both_loops
async def test_a_client_that_hangs_up_leaves_nothing(tmp_path: Path) -> None:
    """Descriptors are closed, whatever state the answer was in."""
    async with warm(tmp_path) as (mirror, digest):
        host, port = re.fullmatch(r"http://(.+):(\d+)", mirror.url).groups()  # type: ignore[union-attr]
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(20):
            reader, writer = await asyncio.open_connection(host, int(port), limit=2**16)
            request = f"GET /v2/app/blobs/{digest}?ns=r.test HTTP/1.1\r\nHost: x\r\nRange: bytes=0-999999\r\n\r\n"
            writer.write(request.encode() * 8)
            await reader.readexactly(1000)
            writer.transport.abort()
        await until(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before)


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_left(data: bytes) -> None:
    parse_simple_get(data)
    parse_simple_get(b"GET /v2/" + data + b" HTTP/1.1\r\n\r\n")
    parse_simple_get(b"GET /v2/a HTTP/1.1\r\n" + data + b"\r\n\r\n")


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /v2/a HTTP/1.1\r\nHost: x\r\n\r\nGET /v2/b HTTP/1.1\r\n\r\n",  # two
        b"GET /v2/a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",  # with a body
        b"GET /v2/a HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n",
        b"GET /v2/a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /v2/a HTTP/1.1\r\nRange: bytes=1-2\r\nRange: bytes=3-4\r\n\r\n",
        b"GET /v2/a HTTP/1.1\r\nConnection: close\r\n\r\n",
        b"GET /v2/a HTTP/1.1\r\nExpect: 100-continue\r\n\r\n",
        b"GET /v2/a HTTP/1.1\r\nVia: 1.1 fastpull-proxy\r\n\r\n",
        b"GET /v2/a HTTP/1.1\r\nHost: x\n\r\n",
        b"GET /v2/a HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /v2/a HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
        b"GET /v2/a HTTP/1.1\r\nHost: x\r\n",  # not all of it yet
        b"get /v2/a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /v2/a HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_is_not_simple_is_left_to_aiohttp(request_: bytes) -> None:
    assert parse_simple_get(request_) is None
