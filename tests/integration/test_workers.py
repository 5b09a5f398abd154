"""Several processes that serve one store: real processes, real kills."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import ssl
import stat
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from fakes.herd import read_all
from fakes.registry import FakeRegistry
from harness.oci import OciLayout, directory, file
from harness.processes import run
from harness.proxy import Proxy
from harness.registry import Registry

from fastpull.cache.frames import FrameReader
from fastpull.image.chunk_map import ChunkMap

MiB = 2**20
NAME = "registry.test"
SECRET = "a-password-of-the-environment"
BLOB = random.Random(1).randbytes(4 * MiB)


def settings(url: str, workers: int, further: str = "", *, trigger: str = "on-warm") -> str:
    return (
        f'workers = {workers}\n{further}\n[ingest]\ntrigger = "{trigger}"\n'
        f'[upstreams."{NAME}"]\nurl = "{url}"\nredirect_private = true\n'
    )


def workers_of(proxy: Proxy) -> list[int]:
    """The pids of the further processes."""
    return proxy.process.children("workers.follower")


def is_gone(pid: int) -> bool:
    """Ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


async def until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not await asyncio.to_thread(condition):
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(what) from None


@asynccontextmanager
async def running(proxy: Proxy, workers: int) -> AsyncIterator[Proxy]:
    """Started off the loop, which may serve the registry meanwhile, with all its processes serving."""
    await asyncio.to_thread(proxy.start)
    try:
        await until(lambda: figure(proxy, "fastpull_proxy_workers") == workers - 1, "all workers serve")
        yield proxy
    finally:
        await asyncio.to_thread(proxy.stop)


def figures(proxy: Proxy) -> dict[str, float]:
    text = run("curl", "-s", "-m", "10", f"{proxy.url}/metrics")
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def figure(proxy: Proxy, name: str) -> float:
    return figures(proxy).get(name, 0.0)


async def get(url: str, *, headers: dict[str, str] | None = None) -> tuple[int, bytes]:
    """On a connection of its own, so that the kernel chooses a process anew."""
    async with aiohttp.ClientSession() as client, client.get(url, headers=headers) as answer:
        return answer.status, await answer.read()


async def get_with_retry(url: str) -> bytes:
    """As every client of a registry does."""
    async with asyncio.timeout(60):
        while True:
            try:
                status, body = await get(url)
            except (aiohttp.ClientError, OSError):
                status, body = 0, b""
            if status == 200:
                return body
            await asyncio.sleep(0.1)


async def test_hits_come_from_all_processes_and_the_metrics_are_their_sum(tmp_path: Path) -> None:
    """A hundred connections: each of two followers answers some by itself; upstream was asked once."""
    async with FakeRegistry() as registry:
        digest = registry.add_blob(BLOB)
        proxy = Proxy(tmp_path, [], extra_settings=settings(registry.url, 3))
        url = f"{proxy.url}/v2/app/blobs/{digest}?ns={NAME}"
        async with running(proxy, 3):
            for n in range(100):
                span = {"Range": f"bytes={n}-{n + 999}"} if n % 2 else {}
                assert (await get(url, headers=span))[1] == (BLOB[n : n + 1000] if n % 2 else BLOB)

            def all_told() -> bool:
                told = figures(proxy)
                requests = [(name, value) for name, value in told.items() if "_requests_total{" in name]
                answers = [value for name, value in requests if 'route="blobs"' in name]
                return (
                    sum(answers) == 100
                    and told['fastpull_proxy_client_bytes_total{kind="blob"}'] == 50 * 1000 + 50 * len(BLOB)
                    and all(told.get(f'fastpull_proxy_worker_answers_total{{worker="{n}"}}', 0) > 0 for n in (1, 2))
                )

            await until(all_told, "the sum of all processes at whichever is asked")
        assert registry.body_bytes == len(BLOB) + sum(
            1 for seen in registry.requests if seen.kind == "blob" and seen.range == "bytes=0-0"
        )


@pytest.mark.slow
async def test_a_cold_blob_through_all_processes_is_fetched_once(tmp_path: Path) -> None:
    blob = random.Random(2).randbytes(24 * MiB)
    async with FakeRegistry(bytes_per_second=40e6) as registry:
        digest = registry.add_blob(blob)
        proxy = Proxy(tmp_path, [], extra_settings=settings(registry.url, 3))
        async with running(proxy, 3):
            readers = await asyncio.to_thread(read_all, proxy.port, f"/v2/app/blobs/{digest}?ns={NAME}", blob, 60)
        assert [reader.error for reader in readers] == [""] * 60
        assert [reader.position for reader in readers] == [len(blob)] * 60
        assert registry.body_bytes == len(blob)


async def test_a_killed_process_comes_back_and_clients_that_retry_notice_nothing(tmp_path: Path) -> None:
    async with FakeRegistry() as registry:
        digest = registry.add_blob(BLOB)
        proxy = Proxy(tmp_path, [], extra_settings=settings(registry.url, 2))
        url = f"{proxy.url}/v2/app/blobs/{digest}?ns={NAME}"
        async with running(proxy, 2):
            for _ in range(3):
                [victim] = workers_of(proxy)
                pulls = [asyncio.ensure_future(get_with_retry(url)) for _ in range(20)]  # noqa: TID251
                os.kill(victim, signal.SIGKILL)
                assert set(await asyncio.gather(*pulls)) == {BLOB}
                await until(lambda old=victim: set(workers_of(proxy)) - {old}, "another one is started")  # type: ignore[misc]
                await until(lambda: figure(proxy, "fastpull_proxy_workers") == 1, "and serves")
            assert figure(proxy, "fastpull_proxy_worker_restarts_total") == 3


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
async def test_nobody_outlives_the_first_process(how: signal.Signals, tmp_path: Path) -> None:
    """And the port is free for the next one at once."""
    async with FakeRegistry() as registry:
        digest = registry.add_blob(BLOB)
        proxy = Proxy(tmp_path, [], extra_settings=settings(registry.url, 3))
        url = f"{proxy.url}/v2/app/blobs/{digest}?ns={NAME}"
        async with running(proxy, 3):
            assert (await get(url))[0] == 200
            pids = workers_of(proxy)
            assert len(pids) == 2
            await asyncio.to_thread(proxy.process.kill, how)
            await asyncio.to_thread(proxy.process.wait)
            await until(lambda: all(map(is_gone, pids)), "all are gone")
        async with running(proxy, 3):
            assert (await get(url))[1] == BLOB


async def test_running_downloads_end_before_the_processes_do(tmp_path: Path) -> None:
    """SIGTERM lets every process finish what it sends."""
    blob = random.Random(4).randbytes(32 * MiB)
    async with FakeRegistry() as registry:
        digest = registry.add_blob(blob)
        proxy = Proxy(tmp_path, [], extra_settings=settings(registry.url, 3))
        url = f"{proxy.url}/v2/app/blobs/{digest}?ns={NAME}"
        async with running(proxy, 3):
            for _ in range(12):
                assert (await get(url, headers={"Range": "bytes=0-9"}))[0] == 206
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as client:
                answers = [await client.get(url) for _ in range(8)]
                firsts = [await answer.content.readexactly(1000) for answer in answers]
                proxy.process.kill(signal.SIGTERM)
                rests = await asyncio.gather(*(answer.read() for answer in answers))
            assert all(first + rest == blob for first, rest in zip(firsts, rests, strict=True))
            assert await asyncio.to_thread(proxy.process.wait) == 0


async def test_what_is_removed_is_gone_at_all_processes(tmp_path: Path) -> None:
    """After a purge each connection's next request goes upstream again."""
    async with FakeRegistry() as registry:
        registry.add_image("app", "v1", BLOB)
        [digest] = [digest for digest, data in registry.blobs.items() if data == BLOB]
        proxy = Proxy(tmp_path, [], extra_settings=settings(registry.url, 3))
        path = tmp_path / "data" / "blobs" / "sha256" / digest[7:9] / digest[7:]
        url = f"{proxy.url}/v2/app/blobs/{digest}?ns={NAME}"
        async with running(proxy, 3), aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

            async def ask() -> list[bytes]:
                async def one() -> bytes:
                    async with client.get(url) as answer:
                        return await answer.read() if answer.status == 200 else b""

                return list(await asyncio.gather(*(one() for _ in range(24))))

            for _ in range(2):
                assert await ask() == [BLOB] * 24
            await until(path.exists, "the blob is complete")
            path.unlink()  # as a purge and an eviction do
            registry.blobs.pop(digest)
            assert await ask() == [b""] * 24


async def test_uses_reach_the_quota(tmp_path: Path) -> None:
    """What only a follower sent is not the first to be evicted: its last use is that of the follower."""
    blob = random.Random(6).randbytes(6 * MiB)
    async with FakeRegistry() as registry:
        digest = registry.add_blob(blob)
        proxy = Proxy(tmp_path, [], extra_settings=settings(registry.url, 3))
        url = f"{proxy.url}/v2/app/blobs/{digest}?ns={NAME}"
        path = tmp_path / "data" / "blobs" / "sha256" / digest[7:9] / digest[7:]
        async with running(proxy, 3):
            assert (await get(url))[0] == 200
            await until(path.exists, "the blob is complete")
        old = time.time() - 86400
        os.utime(path, (old, old))
        async with running(proxy, 3):
            async with follower_connection(proxy) as client:
                async with client.head(url) as answer:  # answered by the leader, for which a HEAD is no use
                    assert answer.status == 200
                assert path.stat().st_mtime == pytest.approx(old)
                async with client.get(url, headers={"Range": "bytes=0-99"}) as answer:
                    assert await answer.read() == blob[:100]
            await until(lambda: path.stat().st_mtime > old + 3600, "its last use is of now")


@asynccontextmanager
async def follower_connection(proxy: Proxy) -> AsyncIterator[aiohttp.ClientSession]:
    """A client with one connection, which a follower has taken."""
    pids = workers_of(proxy)
    for _ in range(100):
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=1)) as client:
            async with client.get(f"{proxy.url}/healthz") as answer:
                await answer.read()
            [local] = [key for key in sockets() if key[0] != proxy.port and key[1] == proxy.port]
            inode = sockets()[proxy.port, local[0]]
            if any(f"socket:[{inode}]" in links(pid) for pid in pids):
                yield client
                return
    raise AssertionError("a hundred connections and none for a follower")


def sockets() -> dict[tuple[int, int], str]:
    """Established TCP connections of this machine, by local and remote port: their inodes (proc(5))."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {(int(row[1][-4:], 16), int(row[2][-4:], 16)): row[9] for row in rows if row[3] == "01"}


def links(pid: int) -> set[str]:
    found = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(os.readlink(path))
    return found


async def test_followers_know_no_secrets_and_the_door_is_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv(f"FASTPULL_PROXY__UPSTREAMS__{NAME.upper()}__CREDENTIALS__PASSWORD", SECRET)
    credentials = f'[upstreams."{NAME}".credentials]\nkind = "basic"\nusername = "u"\npassword = "{SECRET}"\n'
    async with FakeRegistry() as registry:
        proxy = Proxy(tmp_path, [], extra_settings=settings(registry.url, 2) + credentials)
        async with running(proxy, 2):
            [pid] = workers_of(proxy)
            for name in ("cmdline", "environ"):
                assert SECRET.encode() not in Path(f"/proc/{pid}/{name}").read_bytes()
            assert not any(f"{tmp_path}/data/tables" in link for link in links(pid)), "the leader's database"
            folder = tmp_path / "data" / "workers"
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert stat.S_IMODE((folder / "leader.sock").stat().st_mode) == 0o600
        assert SECRET not in proxy.process.log.read_text()


async def test_a_removed_socket_is_made_anew(tmp_path: Path) -> None:
    """Whoever cleans up in the data directory costs an answer, not the service."""
    async with FakeRegistry() as registry:
        registry.add_image("app", "v1", BLOB)
        proxy = Proxy(tmp_path, [], extra_settings=settings(registry.url, 2))
        url = f"{proxy.url}/v2/app/manifests/v1?ns={NAME}"
        socket = tmp_path / "data" / "workers" / "leader.sock"
        async with running(proxy, 2):
            socket.unlink()
            [first] = workers_of(proxy)

            async def until_replaced() -> None:
                while first in workers_of(proxy):  # by and by more at once than it has connections open
                    await asyncio.gather(*(get(url) for _ in range(16)), return_exceptions=True)

            async with asyncio.timeout(60):
                await until_replaced()
            await until(lambda: figure(proxy, "fastpull_proxy_workers") == 1, "another one serves")
            assert [(await get(url))[0] for _ in range(12)] == [200] * 12
            assert stat.S_IMODE(socket.stat().st_mode) == 0o600


async def test_tls_ends_at_each_process(tmp_path: Path) -> None:
    """Hits and forwarded answers over https, from both, and no follower without its certificate."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    run(
        *(
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ),
        *("-subj", "/CN=proxy", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate),
    )
    trusting = ssl.create_default_context(cafile=str(certificate))
    async with FakeRegistry() as registry:
        digest = registry.add_blob(BLOB)
        registry.add_image("app", "v1", BLOB)
        tls = f'tls_certificate = "{certificate}"\ntls_key = "{key}"'
        proxy = Proxy(tmp_path / "p", [], extra_settings=settings(registry.url, 2, tls))
        url = proxy.url.replace("http:", "https:")

        async def fetch(path: str) -> bytes:
            connector = aiohttp.TCPConnector(ssl=trusting)
            async with aiohttp.ClientSession(connector=connector) as client, client.get(url + path) as answer:
                assert answer.status == 200
                return await answer.read()

        def is_there() -> bool:
            return "serving process 1 is there" in proxy.process.log.read_text()

        await asyncio.to_thread(proxy.process.start)
        try:
            await until(is_there, "both serve")
            for _ in range(16):
                assert await fetch(f"/v2/app/blobs/{digest}?ns={NAME}") == BLOB
                assert b"layers" in await fetch(f"/v2/app/manifests/v1?ns={NAME}")
            async with asyncio.timeout(30):
                while b'worker_answers_total{worker="1"}' not in await fetch("/metrics"):
                    await fetch(f"/v2/app/blobs/{digest}?ns={NAME}")
        finally:
            await asyncio.to_thread(proxy.process.stop)


async def test_each_request_is_logged_once_with_the_clients_address(tmp_path: Path) -> None:
    async with FakeRegistry() as registry:
        digest = registry.add_blob(BLOB)
        registry.add_image("app", "v1", BLOB)
        proxy = Proxy(tmp_path, [], extra_settings=settings(registry.url, 3, "access_log = true"))
        async with running(proxy, 3):
            for n in range(12):
                assert (await get(f"{proxy.url}/v2/app/blobs/{digest}?ns={NAME}&n={n}"))[0] == 200
                assert (await get(f"{proxy.url}/v2/app/manifests/v1?ns={NAME}&n={n}"))[0] == 200
        lines = [line for line in proxy.process.log.read_text().splitlines() if "aiohttp.access" in line]
        entries = [json.loads(line[line.index("{") :]) for line in lines]
        entries = [entry for entry in entries if entry["path"].startswith("/v2/app/")]
        assert len(entries) == 24
        assert {entry["remote"] for entry in entries} == {"127.0.0.1"}


async def test_a_port_that_somebody_has_is_not_shared_by_accident(tmp_path: Path) -> None:
    async with FakeRegistry() as registry:
        first = Proxy(tmp_path / "one", [], extra_settings=settings(registry.url, 2))
        second = Proxy(tmp_path / "two", [], extra_settings=settings(registry.url, 2))
        second.config.write_text(second.config.read_text().replace(f"port = {second.port}", f"port = {first.port}"))
        async with running(first, 2):
            second.process.start()
            assert await asyncio.to_thread(second.process.wait) == 1
            assert "in use" in second.process.log.read_text()


def test_skopeo_and_chunks_through_two_processes(tmp_path: Path) -> None:
    """A real image: pulled twice by skopeo, warmed, and its chunks asked for until both processes gave some."""
    layout = OciLayout(tmp_path / "layout")
    data = random.Random(5)
    files = [file(f"data/{n}", data.randbytes(400_000)) for n in range(6)]
    image = layout.add_image("app", [layout.add_layer([directory("data"), *files], compression="gzip")])
    with Registry(tmp_path / "registry") as registry:
        registry.push(image, "team/app:v1")
        proxy = Proxy(tmp_path / "proxy", [], extra_settings=settings(registry.url, 2, trigger="on-pull"))
        with proxy:
            host = proxy.url.removeprefix("http://")
            source = f"docker://{host}/{NAME}/team/app:v1"
            pull = ("skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", source)
            for out in ("one", "two"):
                run(*pull, f"dir:{tmp_path / out}", seconds=120)
                assert len([path for path in (tmp_path / out).iterdir() if len(path.name) == 64]) == 2
            warmed = proxy.warm(f"{NAME}/team/app:v1")
            asyncio.run(ask_for_chunks(proxy, warmed["chain_id"]))
            assert proxy.get("/v1/status")["ready"]
            digest = next(path.name for path in (tmp_path / "one").iterdir() if path.stat().st_size > 2_000_000)
            url = f"{proxy.url}/v2/team/app/blobs/sha256:{digest}?ns={NAME}"
            assert upstream_blobs(registry, url) == []
            run(sys.executable, "-P", "-m", "fastpull.proxy", "purge", "--proxy", proxy.url, f"{NAME}/team/app:v1")
            assert f"sha256:{digest}" in upstream_blobs(registry, url)


def upstream_blobs(registry: Registry, url: str) -> list[str | None]:
    """What the registry was asked for while a dozen connections each got the blob."""
    with registry.watched() as requests:
        sizes = asyncio.run(sizes_of(url, 12))
    assert len(sizes) == 1, "each answer is whole"
    return [request.blob for request in requests if request.blob]


async def sizes_of(url: str, count: int) -> set[int]:
    """Of the bodies that so many connections get, one after the other."""
    got = [await get(url) for _ in range(count)]
    assert {status for status, _ in got} == {200}
    return {len(body) for _, body in got}


async def ask_for_chunks(proxy: Proxy, chain: str) -> None:
    """All of the chain's, from both processes, each answer complete."""
    status, data = await get(f"{proxy.url}/v1/chains/{chain}/chunkmap", headers={"Accept-Encoding": "identity"})
    assert status == 200
    ids = list(dict.fromkeys(ChunkMap.open(data).ids()))
    assert ids

    def told() -> float:
        return figure(proxy, 'fastpull_proxy_worker_answers_total{worker="1"}')

    before = await asyncio.to_thread(told)
    async with asyncio.timeout(60):
        while await asyncio.to_thread(told) <= before:
            for _ in range(8):
                async with aiohttp.ClientSession() as client:
                    async with client.post(f"{proxy.url}/v1/chunks", data=b"".join(ids)) as answer:
                        reader = FrameReader()
                        frames = list(reader.feed(await answer.read()))
                assert len(frames) == len(ids)
                assert None not in frames
                assert reader.pending == 0
