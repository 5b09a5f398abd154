"""Kills a proxy at random moments, again and again, and looks at what it leaves. Run by ``test_killed_proxy.py``.

A round is a process of its own: all services of the proxy on one data directory, its ingest worker beside it, a
registry behind it. It checks everything that it finds, as ``scrub`` does, says so, and then pulls, ingests, learns,
evicts and purges side by side until it is killed with its worker. The processes are forked from one that has
imported everything and never opened a store: two hundred starts of an interpreter would take minutes. Every
``REAL_EVERY``th round is ``fastpull-proxy serve`` itself, killed as a group and asked over HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from conformance.audit import audit, unaccounted_blocks
from fakes.registry import FakeRegistry
from harness.oci import Image, OciLayout, directory, file

from fastpull.cache.codec import decode
from fastpull.cache.digest import Digest
from fastpull.cache.errors import CacheError
from fastpull.cache.wire import Trace
from fastpull.config.load import load
from fastpull.config.proxy import ProxySettings
from fastpull.image.errors import ImageError
from fastpull.proxy.app import open_services
from fastpull.proxy.errors import MirrorError
from fastpull.proxy.housekeeping import tidy
from fastpull.proxy.ingest import process as worker_process
from fastpull.proxy.ingest import worker
from fastpull.proxy.ingest.images import ImageUnknownError
from fastpull.proxy.ingest.service import FAILURES
from fastpull.proxy.mirror.blobs import BlobSource
from fastpull.proxy.services import Services

NAME = "registry.test"
IMAGES = 5
CHUNK_QUOTA = 1_600_000  # of some 2.4 MB that all images have: something is evicted all the time
BLOB_QUOTA = 1_200_000
UPSTREAM_BYTES_PER_SECOND = 6e6
REAL_EVERY = 9
DIES_WHILE_IT_OPENS = 8  # one round in so many
READY_SECONDS = 60.0
LEFT_BEHIND = 64  # blocks; the ends of segments, and what the file system needs for itself


# ------------------------------------------------------------------------------------------- the images


def make_images(root: Path) -> list[Image]:
    """Two layers each, half compressible, a quarter of it shared."""
    layout = OciLayout(root / "layout")
    source = random.Random(1)
    shared = [source.randbytes(8_000) for _ in range(10)]
    images = []
    for number in range(IMAGES):
        layers = [
            layout.add_layer(
                [
                    directory("lib"),
                    *(file(f"lib/{part}-{n}.so", source.randbytes(9_000) + bytes(5_000)) for n in range(16)),
                    *(file(f"lib/shared-{n}", shared[n]) for n in source.sample(range(10), 6)),
                ]
            )
            for part in range(2)
        ]
        images.append(layout.add_image(f"app-{number}", layers))
    return images


async def serve_images(images: list[Image], port: Callable[[int], object]) -> None:
    async with FakeRegistry(bytes_per_second=UPSTREAM_BYTES_PER_SECOND) as registry:
        for image in images:
            for path in (image.layout / "blobs" / "sha256").iterdir():
                registry.add_blob(path.read_bytes())
            body = registry.blobs[image.manifest_digest]
            registry.add_manifest(image.name, "1", body)
        port(int(registry.url.rpartition(":")[2]))
        await asyncio.Event().wait()


# ------------------------------------------------------------------------------------ one life of a proxy


class ForkedWorker:
    """The part of ``asyncio.subprocess.Process`` that ``WorkerProcess`` needs, of a process forked beforehand."""

    returncode = None

    def __init__(self, pid: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.pid = pid
        self.stdout, self.stdin = reader, writer

    async def wait(self) -> int:
        with contextlib.suppress(ChildProcessError):  # whoever waited before has seen its end
            await asyncio.to_thread(os.waitpid, self.pid, 0)
        return 0

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def fork_worker() -> tuple[int, socket.socket]:
    """The ingest's worker, before this process has a thread or a store."""
    ours, theirs = socket.socketpair()
    if pid := os.fork():
        theirs.close()
        return pid, ours
    ours.close()
    os.dup2(theirs.fileno(), 0)
    os.dup2(theirs.fileno(), 1)
    sys.stdin = os.fdopen(0)  # its buffer is of the new descriptor
    worker.main()
    os._exit(0)


async def verify(services: Services) -> dict[str, Any]:
    """Everything that shows, as ``scrub`` checks it, and that nothing else lies on the disk."""
    states = [state async for state in services.scrubs.states(0, every=5.0)]
    problems = list(states[-1].notes)
    if not states[-1].is_clean or any(kind.damaged for kind in states[-1].kinds):
        problems.append("the scrub found damage")
    data, blobs = services.settings.data_dir, services.mirror.blobs
    complete = [path for path in (data / "blobs").rglob("*") if path.is_file()]
    problems += [f"{path} is no blob" for path in complete if not blobs.has(Digest.parse(f"sha256:{path.name}"))]
    partial = list((data / "fills").glob("*.part"))
    problems += [
        f"{path} belongs to no partial blob"
        for path in (data / "fills").iterdir()
        if path.with_suffix(".part") not in partial
    ]
    held = sum(path.stat().st_size for path in complete) + sum(path.stat().st_blocks * 512 for path in partial)
    if held != blobs.used_bytes:
        problems.append(f"blobs have {held} bytes, {blobs.used_bytes} are on the books")
    checked = sum(kind.checked for kind in states[-1].kinds)
    return {"checked": checked, "partials": len(partial), "problems": problems}


async def work(services: Services, images: list[Image], chosen: random.Random) -> None:
    """Everything at once, for ever."""
    await asyncio.gather(
        *(pull(services, images, chosen) for _ in range(3)),
        *(warm(services, images, chosen) for _ in range(2)),
        learn(services, images, chosen),
        evict(services, images, chosen),
    )


async def pull(services: Services, images: list[Image], chosen: random.Random) -> None:
    while True:
        image = chosen.choice(images)
        layer = chosen.choice(image.layers)
        source = BlobSource(NAME, image.name, Digest.parse(layer.digest), layer.size)
        with contextlib.suppress(MirrorError, TimeoutError):
            async with asyncio.timeout(chosen.uniform(0.005, 0.2)), services.mirror.blobs.open(source) as blob:
                await blob.wait_complete()
        await asyncio.sleep(0.002)


async def warm(services: Services, images: list[Image], chosen: random.Random) -> None:
    while True:
        await services.warms.start(f"{NAME}/{chosen.choice(images).name}:1", None, wait_seconds=5.0)
        await asyncio.sleep(0.002)


async def learn(services: Services, images: list[Image], chosen: random.Random) -> None:
    while True:
        chain = str(chosen.choice(images).chain_ids[-1])
        with contextlib.suppress(*FAILURES, ImageError, MirrorError, CacheError):
            if services.ingest.chains.built(chain) is not None:
                chunks = (await services.ingest.chains.chunk_map(chain)).ids()
                some = tuple(chunk.hex() for chunk in chosen.sample(chunks, len(chunks) // 2))
                await services.plans.learn(Trace(chain_id=chain, chunks=some, at_ms=tuple(range(len(some)))))
        await asyncio.sleep(0.01)


async def evict(services: Services, images: list[Image], chosen: random.Random) -> None:
    while True:
        await asyncio.sleep(chosen.uniform(0.0, 0.04))
        image = chosen.choice(images)
        with contextlib.suppress(*FAILURES, CacheError, MirrorError, ImageUnknownError):
            match chosen.randrange(5):
                case 0:
                    target = int(chosen.uniform(0.3, 0.9) * CHUNK_QUOTA)
                    await services.store_writer.run(lambda: services.store.evict(target, in_use=lambda _: False))  # noqa: B023
                case 1:
                    services.mirror.blobs.drop(Digest.parse(chosen.choice(image.layers).digest))
                case 2:
                    await services.purge.image(f"{NAME}/{image.name}:1")
                case 3:
                    await services.ingest.chains.forget(str(image.chain_ids[-1]))
                case _:
                    await services.store_writer.run(tidy, services.store, services.recently_served)


@contextlib.asynccontextmanager
async def life(settings: ProxySettings, worker_of: tuple[int, socket.socket]) -> AsyncIterator[Services]:
    async def adopt(*_args: object, **_options: object) -> ForkedWorker:
        pid, ours = worker_of
        return ForkedWorker(pid, *await asyncio.open_connection(sock=ours))

    worker_process.asyncio.create_subprocess_exec = adopt  # type: ignore[assignment]
    async with AsyncExitStack() as stack:
        yield await open_services(settings, stack)


def live_and_die(settings: ProxySettings, images: list[Image], seed: int, report: int) -> None:
    """One round, until somebody kills it."""
    os.setpgid(0, 0)
    forked = fork_worker()

    async def run() -> None:
        async with life(settings, forked) as services:
            os.write(report, json.dumps(await verify(services)).encode())
            await work(services, images, random.Random(seed))

    asyncio.run(run())


def finish(settings: ProxySettings, images: list[Image], report: int) -> None:
    """With room for all: every image becomes ready, and each of its chunks is right."""
    os.setpgid(0, 0)
    forked = fork_worker()

    async def run() -> None:
        async with life(settings, forked) as services:
            found = await verify(services)
            found["bootstraps"] = {}
            for image in images:
                state = await services.warms.start(f"{NAME}/{image.name}:1", None, wait_seconds=60.0)
                chain = str(image.chain_ids[-1])
                if state.stage != "done":
                    found["problems"].append(f"{image.name}: {state.stage} {state.error}")
                    continue
                for chunk in (await services.ingest.chains.chunk_map(chain)).ids():
                    decode(services.store.get(chunk), chunk)
                built = services.ingest.chains.built(chain)
                assert built is not None
                found["bootstraps"][chain] = built.bootstrap_digest
            os.write(report, json.dumps(found).encode())

    asyncio.run(run())


# ------------------------------------------------------------------------------------------ who kills it


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: nothing is left of a test that was killed itself


def forked(work: Callable[..., None], *arguments: object) -> int:
    process = os.fork()
    if process:
        return process
    try:
        die_with_parent()
        work(*arguments)
        os._exit(0)
    except BaseException as exc:
        sys.stderr.write(f"{work.__name__}: {exc!r}\n")
        sys.stderr.flush()
        os._exit(1)


def reported(read: int) -> dict[str, Any]:
    """What the round says of what it found; waits for it."""
    ready, _, _ = select.select([read], [], [], READY_SECONDS)
    data = os.read(read, 1 << 16) if ready else b""
    return dict(json.loads(data)) if data else {"checked": 0, "partials": 0, "problems": ["the proxy did not come up"]}


def kill_group(pid: int) -> list[str]:
    """Kill it with its worker; say so if it had ended by itself."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)  # at once: it may not have become a group yet
        os.killpg(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return [] if os.WIFSIGNALED(status) else [f"it ended by itself ({status})"]


def forked_round(settings: ProxySettings, images: list[Image], chosen: random.Random) -> dict[str, Any]:
    read, report = os.pipe()
    pid = forked(live_and_die, settings, images, chosen.randrange(1 << 30), report)
    os.close(report)
    found: dict[str, Any] = {"checked": 0, "partials": 0, "problems": []}
    if chosen.randrange(DIES_WHILE_IT_OPENS):
        found = reported(read)
        time.sleep(chosen.uniform(0.0, 0.2))
    else:
        time.sleep(chosen.uniform(0.0, 0.15))
    found["problems"] += kill_group(pid)
    os.close(read)
    return found


def real_round(config: Path, port: int, images: list[Image], chosen: random.Random) -> dict[str, Any]:
    """``fastpull-proxy serve`` under requests; what it left is checked by the round behind it."""
    command = [sys.executable, "-P", "-m", "fastpull.proxy", "serve", "--config", str(config), "--log-level", "error"]
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent)  # noqa: PLW1509 - no thread runs
    until = time.monotonic() + READY_SECONDS
    try:
        with ThreadPoolExecutor(6) as clients:
            while not ask(port, "/readyz"):
                if time.monotonic() > until or process.poll() is not None:
                    return {"checked": 0, "partials": 0, "problems": ["fastpull-proxy serve did not come up"]}
                time.sleep(0.02)
            for image in chosen.sample(images, 4):
                body = json.dumps({"image": f"{NAME}/{image.name}:1"}).encode()
                clients.submit(ask, port, "/v1/warm", body)
                clients.submit(ask, port, f"/v2/{image.name}/blobs/{image.layers[0].digest}?ns={NAME}")
            time.sleep(chosen.uniform(0.0, 0.4))
            os.killpg(process.pid, signal.SIGKILL)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return {"checked": 0, "partials": 0, "problems": []}


def ask(port: int, path: str, body: bytes | None = None) -> bool:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            answer.read()
            return bool(answer.status == 200)
    except (OSError, ValueError):
        return False
    except Exception:  # http.client's, of a connection that died
        return False


def settings_of(root: Path, registry_port: int, port: int, quota: int) -> Path:
    config = root / f"proxy-{quota}.toml"
    config.write_text(
        f'data_dir = "{root / "data"}"\n'
        f"[listen]\nport = {port}\n"
        f"[cache]\nchunk_bytes = {quota}\nblob_bytes = {BLOB_QUOTA}\n"
        '[mirror]\nrange_bytes = "64KiB"\n'
        '[ingest]\ntrigger = "on-warm"\nworkers = 1\n'
        f'[upstreams."{NAME}"]\nurl = "http://127.0.0.1:{registry_port}"\n'
    )
    return config


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def main(root: Path, rounds: int, seed: int) -> None:
    logging.disable(logging.CRITICAL)
    chosen = random.Random(seed)
    images = make_images(root)
    read, write = os.pipe()
    registry = forked(lambda: asyncio.run(serve_images(images, lambda port: os.write(write, str(port).encode()))))
    try:
        run_rounds(root, images, int(os.read(read, 16)), rounds, seed, chosen)
    finally:
        os.kill(registry, signal.SIGKILL)
        os.waitpid(registry, 0)


def run_rounds(
    root: Path, images: list[Image], registry_port: int, rounds: int, seed: int, chosen: random.Random
) -> None:
    port = free_port()
    config = settings_of(root, registry_port, port, CHUNK_QUOTA)
    settings = load(ProxySettings, config, prefix="FASTPULL_PROXY")
    checked = partials = real = 0
    for number in range(rounds):
        is_real = number % REAL_EVERY == REAL_EVERY - 1
        real += is_real
        found = real_round(config, port, images, chosen) if is_real else forked_round(settings, images, chosen)
        checked += found["checked"]
        partials += found["partials"]
        store = root / "data" / "chunks"
        if (store / "index" / "data.mdb").exists():  # it may have died before there was one
            found["problems"] += audit(store)
        if found["problems"]:
            sys.exit(f"seed {seed}, kill {number}: " + "; ".join(found["problems"][:5]))

    roomy = load(ProxySettings, settings_of(root, registry_port, port, 1 << 30), prefix="FASTPULL_PROXY")
    read, report = os.pipe()
    pid = forked(finish, roomy, images, report)
    found = reported(read)
    os.waitpid(pid, 0)
    if (left := unaccounted_blocks(root / "data" / "chunks")) > LEFT_BEHIND:
        found["problems"].append(f"{left} blocks belong to no chunk")
    if found["problems"]:
        sys.exit(f"seed {seed}, at the end: " + "; ".join(found["problems"][:5]))
    sys.stdout.write(
        json.dumps(
            {
                "kills": rounds,
                "real": real,
                "checked": checked,
                "partials": partials,
                "bootstraps": found["bootstraps"],
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
