"""How fast ``/v2`` serves blobs, beside nginx (sendfile, one worker) and docker-registry.

Each server has one core, the client the other; the same file, the same client, one after the other in each round.
A case's value is the median over the rounds of the ratio within a round, so that what else the machine does
falls on both sides. Cold blobs come over a link of 1 Gbit/s that all connections share, and over bare loopback.

``workers_scale_2``: ranges of 256 KiB a second with ``listen.workers = 2`` over those with one. The client needs
half as much of a core as the server does, so on a machine of two cores two busy workers and their client would
share them, and the ratio would tell of the machine. So each worker is held to a share of a core (cgroups), and the
client has the rest; where that is not allowed, the case is left out. ``--only-workers`` measures nothing else.

    .venv/bin/python load_tests/serve.py [--json FILE] [--rounds N] [--only-workers] [--workers N]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from core_share import held
from harness.processes import OwnedProcess, accepts, free_port
from harness.proxy import Proxy
from harness.waiting import until
from http_load import Load, load, range_requests, request
from report import Report, main

SIZE = 256 * 2**20
KIB = 1024
LINK_BYTES_PER_SECOND = 125e6
SERVER_CORE, CLIENT_CORE = "0", 1
ALL_CORES = ",".join(map(str, sorted(os.sched_getaffinity(0))))
WORKER_SHARE = 0.4  # of a core, for each worker

RANGES = [(64 * KIB, 1, 3000), (64 * KIB, 16, 8000), (64 * KIB, 128, 8000)]
RANGES += [(256 * KIB, 1, 2000), (256 * KIB, 16, 6000), (256 * KIB, 128, 6000)]
RANGES += [(1024 * KIB, 1, 1000), (1024 * KIB, 16, 2000), (1024 * KIB, 128, 2000)]


class Pinned(OwnedProcess):
    """A server with one core."""

    def __init__(self, args: list[str], log: Path) -> None:
        super().__init__(["taskset", "-c", SERVER_CORE, *args], log)


@contextmanager
def nginx(root: Path, blob: Path, digest: str) -> Iterator[int]:
    port = free_port()
    folder = root / "www" / "v2" / "app" / "blobs"
    folder.mkdir(parents=True)
    os.link(blob, folder / digest)
    root.chmod(0o755)
    temporary = "".join(
        f"{name}_temp_path {root}/{name}; " for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (root / "nginx.conf").write_text(
        f"user root; worker_processes 1; daemon off; pid {root}/nginx.pid; error_log {root}/nginx.error;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000000; {temporary}\n"
        f"server {{ listen 127.0.0.1:{port}; root {root}/www; default_type application/octet-stream; }} }}\n"
    )
    with running(Pinned(["nginx", "-c", str(root / "nginx.conf")], root / "nginx.log"), port):
        yield port


@contextmanager
def docker_registry(root: Path, blob: Path, digest: str) -> Iterator[int]:
    """With its log off and its storage filled by hand."""
    port = free_port()
    hex_ = digest.removeprefix("sha256:")
    storage = root / "storage" / "docker" / "registry" / "v2"
    data = storage / "blobs" / "sha256" / hex_[:2] / hex_
    link = storage / "repositories" / "app" / "_layers" / "sha256" / hex_
    for folder in (data, link):
        folder.mkdir(parents=True)
    os.link(blob, data / "data")
    (link / "link").write_text(digest)
    (root / "registry.yml").write_text(
        "version: 0.1\nlog: {accesslog: {disabled: true}, level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {root / 'storage'}}}, cache: {{blobdescriptor: inmemory}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}', secret: x}}\n"
    )
    args = ["env", "GOMAXPROCS=1", "docker-registry", "serve", str(root / "registry.yml")]
    with running(Pinned(args, root / "registry.log"), port):
        yield port


@contextmanager
def running(process: OwnedProcess, port: int) -> Iterator[None]:
    process.start()
    try:
        process.wait_until(lambda: accepts(port), "it listens")
        yield
    finally:
        process.stop()


@contextmanager
def ours(root: Path, upstream_port: int, *, workers: int = 0) -> Iterator[Proxy]:
    """``fastpull-proxy serve``, all caches empty, on the server's core; with a number of workers on all cores."""
    shutil.rmtree(root, ignore_errors=True)
    settings = f"workers = {workers or 1}\n"
    settings += f'[ingest]\ntrigger = "on-warm"\n[upstreams."r.test"]\nurl = "http://127.0.0.1:{upstream_port}"\n'
    proxy = Proxy(root, [], extra_settings=settings)
    proxy.process.args[:0] = ["taskset", "-c", ALL_CORES if workers else SERVER_CORE]
    with proxy:
        yield proxy


def paired(rounds: int, one: Callable[[], Load], other: Callable[[], Load]) -> tuple[float, Load, Load]:
    """The median ratio of answers a second, and the best run of each."""
    runs = [(one(), other()) for _ in range(rounds)]
    ratio = statistics.median(a.per_second / b.per_second for a, b in runs)
    return ratio, max((a for a, _ in runs), key=fastest), max((b for _, b in runs), key=fastest)


def fastest(run: Load) -> float:
    return run.per_second


def measure_complete(report: Report, rounds: int, path: str, ports: dict[str, int]) -> None:
    def whole(name: str, connections: int) -> Callable[[], Load]:
        target = path + ("?ns=r.test" if name == "ours" else "")
        count = max(8, connections)
        return lambda: load(ports[name], [request(target, "x")], connections=connections, count=count)

    def ranges(name: str, length: int, connections: int, count: int) -> Callable[[], Load]:
        target = path + ("?ns=r.test" if name == "ours" else "")
        requests = range_requests(target, "x", SIZE, length)
        return lambda: load(ports[name], requests, connections=connections, count=count)

    for connections in (1, 16, 128):
        suffix = "" if connections == 16 else f"_{connections}_connections"
        ratio, mine, theirs = paired(rounds, whole("ours", connections), whole("nginx", connections))
        report.add(f"whole_blob_gb_s_{connections}_connections", mine.gb_per_second, "GB/s")
        report.add(f"whole_blob_gb_s_{connections}_connections_nginx", theirs.gb_per_second, "GB/s")
        report.add(f"whole_blob_vs_nginx{suffix}", ratio, "ratio", at_least=1.0)
        ratio, _, theirs = paired(rounds, whole("ours", connections), whole("docker-registry", connections))
        report.add(f"whole_blob_vs_docker_registry{suffix}", ratio, "ratio", at_least=1.2)
    for length, connections, count in RANGES:
        name = f"{length // KIB}k"
        suffix = "" if connections == 16 else f"_{connections}_connections"
        ratio, mine, theirs = paired(
            rounds, ranges("ours", length, connections, count), ranges("nginx", length, connections, count)
        )
        report.add(f"range_{name}_rps_{connections}_connections", mine.per_second, "1/s")
        report.add(f"range_{name}_rps_{connections}_connections_nginx", theirs.per_second, "1/s")
        bound = 0.7 if length == 256 * KIB and connections == 16 else None
        report.add(f"range_{name}_rps_vs_nginx{suffix}", ratio, "ratio", at_least=bound)


def measure_cold(report: Report, rounds: int, case: str, root: Path, path: str, upstream_port: int) -> None:
    ratios, best = [], 0.0
    for _ in range(rounds):
        with ours(root / "cold", upstream_port) as proxy:
            direct = load(upstream_port, [request(path, "x")], connections=1, count=1)
            through = load(proxy.port, [request(f"{path}?ns=r.test", "x")], connections=1, count=1)
            ratios.append(through.seconds / direct.seconds)
            best = max(best, through.gb_per_second)
    report.add(f"{case}_gb_s", best, "GB/s")
    report.add(case, statistics.median(ratios), "time ratio", at_most=1.1)


def measure_workers(report: Report, rounds: int, root: Path, path: str, upstream_port: int, workers: int) -> None:
    """Requests a second over those of one worker, every worker held to the same share of a core."""
    target = f"{path}?ns=r.test"
    requests = range_requests(target, "x", SIZE, 256 * KIB)

    def run(processes: int) -> Load:
        with ours(root / "workers", upstream_port, workers=processes) as proxy:
            load(proxy.port, [request(target, "x")], connections=1, count=1)
            until(lambda: len(serving(proxy)) == processes, "all workers serve")
            for _ in range(8):  # each worker has its first request for the blob behind it
                load(proxy.port, requests, connections=16, count=64)
            with held(serving(proxy), WORKER_SHARE):
                return load(proxy.port, requests, connections=32, count=6000 * processes)

    try:
        runs = [(run(1), run(workers)) for _ in range(rounds)]
    except PermissionError as exc:
        print(f"workers_scale_{workers} is left out: {exc}")
        return
    ratio = statistics.median(several.per_second / one.per_second for one, several in runs)
    report.add("range_256k_rps_workers_1", max(one.per_second for one, _ in runs), "1/s")
    report.add(f"range_256k_rps_workers_{workers}", max(several.per_second for _, several in runs), "1/s")
    report.add(f"workers_scale_{workers}", ratio, "ratio", at_least=0.8 * workers)


def serving(proxy: Proxy) -> list[int]:
    """The pids of the processes that serve, as the proxy's log tells."""
    first = int((proxy.root / "data" / "lock").read_text())
    further = re.findall(r"serving process \d+ is there, pid (\d+)", proxy.process.log.read_text())
    return [first, *map(int, further)]


def measure(report: Report, args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="fastpull-serve-") as name, ExitStack() as stack:
        root = Path(name)
        blob = root / "blob"
        blob.write_bytes(os.urandom(SIZE))
        digest = f"sha256:{hashlib.sha256(blob.read_bytes()).hexdigest()}"
        path = f"/v2/app/blobs/{digest}"
        port = free_port()
        script = str(Path(__file__).parent / "paced_upstream.py")
        link = OwnedProcess(
            [sys.executable, script, str(port), str(blob), str(LINK_BYTES_PER_SECOND)], root / "paced.log"
        )
        stack.enter_context(running(link, port))
        (root / "nginx").mkdir()
        ports = {"nginx": stack.enter_context(nginx(root / "nginx", blob, digest))}
        ports["docker-registry"] = stack.enter_context(docker_registry(root / "registry", blob, digest))
        measure_workers(report, args.rounds, root, path, ports["nginx"], args.workers)
        if args.only_workers:
            return
        os.sched_setaffinity(0, {CLIENT_CORE})
        measure_cold(report, args.rounds, "cold_blob_overhead", root, path, port)
        measure_cold(report, args.rounds, "cold_blob_overhead_loopback", root, path, ports["nginx"])
        with ours(root / "warm", ports["nginx"]) as proxy:
            ports["ours"] = proxy.port
            load(proxy.port, [request(f"{path}?ns=r.test", "x")], connections=1, count=1)
            measure_complete(report, args.rounds, path, ports)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2, help="of the case workers_scale_N")
    parser.add_argument("--only-workers", action="store_true", help="measure only that case")
    main("Serving blobs: /v2 beside nginx and docker-registry", measure, parser)
