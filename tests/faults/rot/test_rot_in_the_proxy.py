"""Flipped bits in what a running proxy holds: ``scrub`` finds and drops them, and all comes back right."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.fault_rows import Seen
from harness.oci import Image, OciLayout, directory, file
from harness.proxy import Proxy
from harness.registry import Registry
from harness.waiting import until

from fastpull.cache.digest import Digest
from fastpull.cache.tables import Database
from fastpull.image.plan import LearnedPlan
from fastpull.proxy.app import TABLES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FILES = 12


class Held:
    """A proxy that has one image, and what it must answer."""

    def __init__(self, root: Path, registry: Registry) -> None:
        source = random.Random(5)
        layout = OciLayout(root / "layout")
        layers = [
            layout.add_layer(
                [
                    directory("lib"),
                    *(file(f"lib/{part}-{n}", source.randbytes(40_000) + bytes(9_000)) for n in range(FILES)),
                ]
            )
            for part in range(2)
        ]
        self.image: Image = layout.add_image("rot", layers)
        self.registry = registry
        self.name = registry.push(self.image, "rot:1")
        self.proxy = Proxy(root / "proxy", [registry])
        self.data = root / "proxy" / "data"

    @property
    def chain(self) -> str:
        return str(self.image.chain_ids[-1])

    def read(self) -> dict[str, str]:
        """The digest of every answer that a client could get."""
        repository = self.name.partition("/")[2].partition(":")[0]
        paths = [f"/v1/chains/{self.chain}/{kind}" for kind in ("bootstrap", "chunkmap", "device")]
        paths += [f"/v2/{repository}/blobs/{layer.digest}?ns={self.registry.host}" for layer in self.image.layers]
        paths += [f"/v2/{repository}/manifests/{self.image.manifest_digest}?ns={self.registry.host}"]
        return {path: str(Digest.of(get(self.proxy.url + path))) for path in paths}

    def scrub(self, *options: str) -> tuple[int, dict[str, Any]]:
        command = [sys.executable, "-P", "-m", "fastpull.proxy", "scrub", "--proxy", self.proxy.url, "--json", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


def flip(path: Path, offset: int) -> None:
    """As a bad disk does: in place, behind everybody's back."""
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes((byte ^ 8,)))


def damaged(outcome: dict[str, Any]) -> dict[str, int]:
    return {kind["kind"]: kind["damaged"] for kind in outcome["kinds"] if kind["damaged"]}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def held(tmp_path: Path, registry: Registry) -> Iterator[Held]:
    held = Held(tmp_path, registry)
    with held.proxy:
        held.proxy.warm(held.name)
        yield held


def rot_chunks(held: Held) -> None:
    segment = next((held.data / "chunks").glob("*.chunks"))
    size = len(segment.read_bytes().rstrip(b"\0"))
    flip(segment, size // 3)
    flip(segment, size * 2 // 3)


def rot_blob(held: Held) -> None:
    digest = held.image.layers[0].digest.removeprefix("sha256:")
    flip(held.data / "blobs" / "sha256" / digest[:2] / digest, held.image.layers[0].size // 2)


@pytest.mark.fault(
    "rot: chunks of a running proxy, scrubbed",
    done="bits flipped in a segment file; `fastpull-proxy scrub`",
    promised="found, dropped, ingested again when they are read",
)
def test_rotten_chunks(held: Held, seen: Seen) -> None:
    before = held.read()
    rot_chunks(held)

    code, outcome = held.scrub("--rate", "0")

    assert (code, outcome["clean"]) == (0, True)
    assert damaged(outcome) == {"chunks": 2}
    assert outcome["dropped"] == 2
    assert held.read() == before
    code, outcome = held.scrub()
    assert (code, outcome["damaged"]) == (0, 0)
    seen(f"2 of {outcome['kinds'][0]['checked']} chunks damaged and dropped; the same bytes as before")


@pytest.mark.fault(
    "rot: a blob file of a running proxy, scrubbed",
    done="a bit flipped; `fastpull-proxy scrub`",
    promised="found, dropped, fetched again. Without a scrub the client finds out: it checks the digest",
)
def test_a_rotten_blob(held: Held, seen: Seen) -> None:
    before = held.read()
    rot_blob(held)

    code, outcome = held.scrub("--rate", "0")

    assert (code, damaged(outcome)) == (0, {"blobs": 1})
    with held.registry.watched() as requests:
        assert held.read() == before
    assert held.image.layers[0].digest in [request.blob for request in requests]
    seen("found, and fetched again at the next pull")


@pytest.mark.fault(
    "rot: a blob file from which evicted chunks come back",
    done="a bit of a blob flipped, its chunks gone",
    promised="the ingest notices, has the blob fetched again, and the node gets the right bytes",
)
def test_a_rotten_blob_is_ingested_again(held: Held, seen: Seen) -> None:
    before = held.read()
    held.proxy.process.kill()
    shutil.rmtree(held.data / "chunks")
    rot_blob(held)
    held.proxy.start()

    with held.registry.watched() as requests:
        assert held.read() == before
    assert [request.blob for request in requests].count(held.image.layers[0].digest) == 1
    seen("the blob fetched once more, the same bytes as before")


@pytest.mark.fault(
    "rot: every table of the proxy, scrubbed",
    done="a bit flipped in a layer index, bootstrap, chunk map, plan, manifest and record of each kind",
    promised="found, dropped, ingested, built, learned or fetched again",
)
def test_rotten_tables(held: Held, seen: Seen) -> None:
    """LMDB has no checksums of its own: the values have. Flipped while the proxy is down, found when it runs."""
    before = held.read()
    post(f"{held.proxy.url}/v1/traces", {"chain_id": held.chain, "chunks": first_chunks(held)})
    held.proxy.process.kill()
    tables = ("indexes", "artifacts", "plans", "mirror_manifests", "images", "links", "built", "layers")
    rot_tables(held.data / "tables", tables)
    held.proxy.start()

    code, outcome = held.scrub("--rate", "0")

    assert (code, outcome["clean"]) == (0, True)
    found = damaged(outcome)
    assert len(found) == len(tables) - 1, "the chain's record went with its damaged bootstrap"
    held.proxy.warm(held.name)
    assert held.read() == before
    code, outcome = held.scrub("--rate", "0")
    assert (code, outcome["damaged"]) == (0, 0)
    seen(f"{sum(found.values())} values of {len(found)} tables found; the same bytes as before")


@pytest.mark.fault(
    "rot: tables of the proxy, under its clients",
    done="a bit flipped in every index, bootstrap, chunk map, chain record and manifest; no scrub",
    promised="no client gets a wrong byte: what is damaged is fetched or built again when it is asked for",
)
def test_rotten_tables_under_clients(held: Held, seen: Seen) -> None:
    before = held.read()
    held.proxy.process.kill()
    rot_tables(held.data / "tables", ("indexes", "artifacts", "built", "mirror_manifests"), all_of_them=True)
    held.proxy.start()

    assert held.read() == before
    seen(f"{len(before)} answers, all with the right digest")


def test_a_newer_version_is_left_alone(held: Held) -> None:
    """Somebody has gone back to an older proxy: what it can not read is not for it to remove. Exit code 1."""
    held.proxy.process.kill()
    database = Database.open(held.data / "tables", tables=TABLES)
    plans = database.table("plans", LearnedPlan)
    plans.put(held.chain, LearnedPlan(chain_id=held.chain, version=99))
    database.close()
    held.proxy.start()

    code, outcome = held.scrub("--rate", "0")

    assert (code, outcome["clean"], outcome["damaged"], outcome["unchecked"]) == (1, False, 0, 1)
    assert "version 99" in outcome["notes"][0]


def test_one_scrub_at_a_time(held: Held) -> None:
    """The second is told so; when whoever asked for the first has left, there is room for another."""
    command = [sys.executable, "-P", "-m", "fastpull.proxy", "scrub", "--proxy", held.proxy.url]
    request = urllib.request.Request(f"{held.proxy.url}/v1/scrub?rate=1000", b"")  # takes minutes
    with urllib.request.urlopen(request, timeout=60) as first:
        assert json.loads(first.readline())["stage"] == "running"
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert refused.returncode == 1
        assert "a scrub is running already" in refused.stderr

    done = until(lambda: finished(command), "the proxy has noticed")
    assert done.stdout.splitlines()[-1] == "all is right"
    assert "chunks: " in done.stdout


def finished(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return None if done.returncode else done


def first_chunks(held: Held) -> list[str]:
    from fastpull.image.chunk_map import ChunkMap

    chunk_map = get(f"{held.proxy.url}/v1/chains/{held.chain}/chunkmap")
    return [chunk.hex() for chunk in ChunkMap.open(chunk_map).ids()[:5]]


def post(url: str, message: dict[str, Any]) -> None:
    request = urllib.request.Request(url, json.dumps(message).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def rot_tables(path: Path, tables: tuple[str, ...], *, all_of_them: bool = False) -> None:
    """Flip a bit of the first value of each table, or of all its values. Nobody may have the database open."""
    database = Database.open(path, tables=TABLES)
    try:
        for name in tables:
            handle = database._databases[name]
            with database._environment.begin(write=True) as transaction:
                for key, value in list(transaction.cursor(handle)):
                    rotten = bytearray(value)
                    rotten[len(rotten) // 2] ^= 8
                    transaction.put(key, bytes(rotten), db=handle)
                    if not all_of_them:
                        break
    finally:
        database.close()
