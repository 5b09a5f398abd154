"""Ingest of real layers beside containerd's unpack of the same ones.

    .venv/bin/python load_tests/ingest.py [--json FILE] [--cache DIR] [--rounds N] [--layer NAME …]
                                          [--without-containerd] [--without-8gb]

Layers: Python packages as an image would hold them (byte code included), gzip level 6. Both sides read the blobs
from the page cache and write to the same file system. containerd is Debian's, with overlayfs; only its
unpack is timed, the blobs are in its content store before. Ours is the whole way of a layer: worker
processes started, both digests checked, new chunks compressed and synced to disk, index returned. The first
run of each side warms up and does not count. Needs root for containerd.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import resource
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard
from blake3 import blake3
from isal import igzip_lib, igzip_threaded
from packages import LayerFile, layer, sha256_of
from pyfastcdc import FastCDC
from report import Report, main

from fastpull.cache.digest import Digest
from fastpull.config.proxy import IngestSettings, ProxySettings
from fastpull.image import chunking
from fastpull.proxy.ingest.pool import LayerJob, LayerPool

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))  # the private containerd is the tests'
from harness.containerd import Containerd

LAYERS = {
    "triton": ("triton==3.3.0",),
    "science": ("numpy==2.2.6", "scipy==1.15.3", "pandas==2.2.3", "scikit-learn==1.6.1"),
    "arrow": ("pyarrow==19.0.1", "polars==1.30.0"),
    "transformers": ("transformers==4.52.4", "sympy==1.14.0", "networkx==3.4.2", "tokenizers==0.21.1"),
}
GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
_GB = 10**9


@dataclass(frozen=True, slots=True)
class Run:
    seconds: float
    cpu_seconds: float
    rss_bytes: int  # the largest worker


async def _ingest(layers: Sequence[LayerFile], store: Path, workers: int) -> int:
    """Return the peak resident memory of the largest worker."""

    async def one(pool: LayerPool, item: LayerFile) -> None:
        size = item.path.stat().st_size

        async def available(_offset: int) -> int:
            return size

        job = LayerJob(item.path, size, GZIP, Digest.parse(item.diff_id))
        await pool.ingest(job, available=available, progress=lambda _: None)

    async with LayerPool(ProxySettings(ingest=IngestSettings(workers=workers)), store) as pool:
        async with asyncio.TaskGroup() as group:
            for item in layers:
                group.create_task(one(pool, item))
        return max(_peak_rss(pid) for pid in pool.pids)


def ingest(layers: Sequence[LayerFile], scratch: Path, *, workers: int = 0) -> Run:
    store = scratch / "store"
    shutil.rmtree(store, ignore_errors=True)
    before, started = _children_cpu(), time.perf_counter()
    rss = asyncio.run(_ingest(layers, store, workers))
    run = Run(time.perf_counter() - started, _children_cpu() - before, rss)
    shutil.rmtree(store)
    return run


def unpack(layers: Sequence[LayerFile], scratch: Path) -> Callable[[], float]:
    """Import the layers as an image; the function returned unpacks it anew and tells the seconds."""
    archive = scratch / "image.tar"
    manifest = _write_archive(layers, scratch / "layout", archive)
    containerd = Containerd(scratch / "containerd")
    containerd.start()

    def run() -> float:
        containerd.ctr("images", "import", "--no-unpack", archive, namespace="load", seconds=600)
        started = time.perf_counter()
        containerd.ctr("snapshots", "unpack", manifest, namespace="load", seconds=1200)
        seconds = time.perf_counter() - started
        containerd.ctr("images", "rm", "--sync", *_images(containerd), namespace="load")
        containerd.collect_garbage()
        return seconds

    run.stop = containerd.stop  # type: ignore[attr-defined]
    return run


def measure(report: Report, args: argparse.Namespace) -> None:
    layers = [layer(name, LAYERS[name], args.cache) for name in args.layer or LAYERS]
    tar_bytes = sum(item.tar_bytes for item in layers)
    blob_bytes = sum(item.path.stat().st_size for item in layers)
    print(f"{len(layers)} layers, {tar_bytes / 1e6:.0f} MB of tar in {blob_bytes / 1e6:.0f} MB of gzip")
    with tempfile.TemporaryDirectory(prefix="ingest-", dir=args.cache) as name:
        scratch = Path(name)
        ours, theirs, floors = _rounds(layers, scratch, args)
        if theirs:
            report.add("containerd_unpack_seconds", statistics.median(theirs), "s")
            report.add("ingest_seconds", statistics.median(run.seconds for run in ours), "s")
            speedups = [their / our.seconds for their, our in zip(theirs, ours, strict=True)]
            report.add("speedup_vs_containerd_unpack", statistics.median(speedups), "ratio", at_least=3.0)
        rates = [tar_bytes / 1e6 / run.cpu_seconds for run in ours]
        report.add("mb_per_core_second", statistics.median(rates), "MB/core-s", at_least=200.0)
        report.add("mb_per_core_second_of_bare_calls", statistics.median(floors), "MB/core-s")
        shares = [rate / floor for rate, floor in zip(rates, floors, strict=True)]
        report.add("share_of_bare_calls", statistics.median(shares), "ratio")
        report.add("rss_mb_these_layers", max(run.rss_bytes for run in ours) / 1e6, "MB")
        _parallel(layers, scratch, report, args.rounds)
        if not args.without_8gb:
            large = [_large_layer(scratch)]
            report.add("rss_mb_8gb_layer", ingest(large, scratch).rss_bytes / 1e6, "MB", at_most=600.0)


def _rounds(
    layers: Sequence[LayerFile], scratch: Path, args: argparse.Namespace
) -> tuple[list[Run], list[float], list[float]]:
    """In turn, so that whatever else the machine does meets all of them."""
    ours: list[Run] = []
    theirs: list[float] = []
    floors: list[float] = []
    unpacking = None if args.without_containerd else unpack(layers, scratch)
    try:
        for number in range(args.rounds + 1):
            seconds = unpacking() if unpacking is not None else 0.0
            run = ingest(layers, scratch)
            floor = bare_calls(layers)
            if number:
                ours.append(run)
                floors.append(floor)
                if unpacking is not None:
                    theirs.append(seconds)
    finally:
        if unpacking is not None:
            unpacking.stop()  # type: ignore[attr-defined]
    return ours, theirs, floors


def _parallel(layers: Sequence[LayerFile], scratch: Path, report: Report, rounds: int) -> None:
    """The same layers on one core and on two."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        return
    ratios = []
    for _ in range(rounds):
        seconds = {}
        for count in (1, 2):
            os.sched_setaffinity(0, cores[:count])
            try:
                seconds[count] = ingest(layers, scratch, workers=count).seconds
            finally:
                os.sched_setaffinity(0, cores)
        ratios.append(seconds[1] / (2 * seconds[2]))
    report.add("parallel_efficiency_2_cores", statistics.median(ratios), "ratio", at_least=0.8)


def bare_calls(layers: Sequence[LayerFile]) -> float:
    """MB per core-second of the C calls alone, on one thread, on the same blobs: what Python adds is the difference."""
    total = 0
    started = time.thread_time()
    for item in layers:
        member = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
        tar_hash = hashlib.sha256()
        cutter = FastCDC(
            chunking.NOMINAL_BYTES, min_size=chunking.MIN_BYTES, max_size=chunking.MAX_BYTES, normalized_chunking=2
        )
        compressor = zstandard.ZstdCompressor(level=1)
        with item.path.open("rb", buffering=0) as file:
            while not member.eof:
                piece = member.decompress(file.read(256 << 10) if member.needs_input else b"", 1 << 20)
                tar_hash.update(piece)
                chunks = [chunk.data for chunk in cutter.cut_buf(piece)]
                for chunk in chunks:
                    blake3(chunk).digest()
                if chunks:
                    compressor.multi_compress_to_buffer(chunks, threads=0)
                total += len(piece)
    return total / 1e6 / (time.thread_time() - started)


def _large_layer(scratch: Path) -> LayerFile:
    """A layer of 8 GB: 20,000 files of up to a few MB, half of them text, no two alike."""
    blob = scratch / "large.tar.gz"
    diff = hashlib.sha256()
    rng = random.Random(8)
    total = 0
    with igzip_threaded.open(str(blob), "wb", threads=2, compresslevel=1) as out:
        for number in range(20_000):
            size = rng.choice((1_000, 10_000, 100_000, 1_600_000))
            block = rng.randbytes(min(size, 50_000))
            content = (block * (size // len(block) + 1))[:size] if number % 2 else rng.randbytes(size)
            member = _member(f"data/{number % 100}/{number}", content)
            diff.update(member)
            out.write(member)
            total += len(member)
        end = bytes(1024)
        diff.update(end)
        out.write(end)
    return LayerFile(blob, "", f"sha256:{diff.hexdigest()}", total)


def _member(name: str, content: bytes) -> bytes:
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:108] = b"0000644\0"
    block[124:136] = b"%011o\0" % len(content)
    block[156:157] = b"0"
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + content + bytes(-len(content) % 512)


def _write_archive(layers: Sequence[LayerFile], layout: Path, archive: Path) -> str:
    """The layers as an OCI archive for ``ctr images import``; return the manifest's digest."""
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(document: object) -> tuple[str, int]:
        data = json.dumps(document).encode()
        digest = sha256_of([data])
        (blobs / digest.partition(":")[2]).write_bytes(data)
        return digest, len(data)

    rootfs = {"type": "layers", "diff_ids": [item.diff_id for item in layers]}
    config, config_size = put({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs})
    descriptors = [{"mediaType": GZIP, "digest": x.digest, "size": x.path.stat().st_size} for x in layers]
    config_type = "application/vnd.oci.image.config.v1+json"
    manifest_type = "application/vnd.oci.image.manifest.v1+json"
    manifest, manifest_size = put(
        {
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": {"mediaType": config_type, "digest": config, "size": config_size},
            "layers": descriptors,
        }
    )
    entry = {"mediaType": manifest_type, "digest": manifest, "size": manifest_size}
    entry["annotations"] = {"org.opencontainers.image.ref.name": "load", "io.containerd.image.name": "load.test/load:1"}
    with tarfile.open(archive, "w") as tar:
        (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        for path in ("oci-layout", "index.json", "blobs"):
            tar.add(layout / path, path)
        for item in layers:
            tar.add(item.path, f"blobs/sha256/{item.digest.partition(':')[2]}")
    return manifest


def _images(containerd: Containerd) -> list[str]:
    return containerd.ctr("images", "ls", "--quiet", namespace="load").split()


def _children_cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _peak_rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("/var/tmp/fastpull-load"), help="keeps downloads and layers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layer", action="append", choices=sorted(LAYERS), help="only this one; may be repeated")
    parser.add_argument("--without-containerd", action="store_true")
    parser.add_argument("--without-8gb", action="store_true")
    main("Ingest", measure, parser)
