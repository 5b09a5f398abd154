"""Plans change when bytes travel, never what is read: not even a proxy's own wrong ones."""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from fakes.node_api import FakeProxy
from harness.node import Node

from fastpull.cache.digest import ChunkId, Digest, chunk_id
from fastpull.cache.wire import Plan
from fastpull.image.chunk_map import ChunkMap
from fastpull.image.layer_index import CHUNK_REF, Entry, EntryType, LayerIndex

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(300),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

IMAGE = "registry.test/planned:1"
FILES = {f"f{number}": random.Random(number).randbytes(400_000) for number in range(20)}
CHUNK_BYTES = 64 * 1024
MOST_MEMORY = 700 << 20

Make = Callable[[Sequence[ChunkId]], Sequence[str]]


def garbage(_: Sequence[ChunkId]) -> list[str]:
    return ["", "zz", "0" * 63, "é" * 64, "00" * 33, "A" * 100_000, *("ab" * 32 for _ in range(1000))]


def huge(chunks: Sequence[ChunkId]) -> list[str]:
    """As large as a node reads at all: 300,000 chunks of somebody else, then our own."""
    rng = random.Random(1)
    return [rng.randbytes(32).hex() for _ in range(300_000)] + [chunk.hex() for chunk in chunks]


PLANS: dict[str, Make] = {
    "reversed": lambda chunks: [chunk.hex() for chunk in reversed(chunks)],
    "repeated": lambda chunks: [chunk.hex() for chunk in chunks] * 50,
    "stale": lambda chunks: [chunk_id(b"%d" % n).hex() if n % 2 else c.hex() for n, c in enumerate(chunks)],
    "garbage": garbage,
    "huge": huge,
}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[FakeProxy, Digest]]:
    entries, contents = [Entry(b"", EntryType.DIRECTORY)], dict[ChunkId, bytes]()
    for name, data in FILES.items():
        parts = [data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES)]
        contents |= {chunk_id(part): part for part in parts}
        refs = b"".join(CHUNK_REF.pack(chunk_id(part), len(part)) for part in parts)
        entries.append(Entry(name.encode(), EntryType.FILE, size=len(data), chunks=refs))
    proxy = FakeProxy()
    chain = proxy.add_image(IMAGE, [LayerIndex(f"sha256:{'7' * 64}", entries)], contents)
    with proxy.in_thread():
        yield proxy, chain


@pytest.mark.fault(
    "hostile input: plans",
    done="a proxy sends plans made to hurt",
    promised="what is read is right, memory is bounded",
)
@pytest.mark.parametrize("name", PLANS)
def test_what_is_read_is_right_and_memory_is_bounded(
    served: tuple[FakeProxy, Digest], tmp_path_factory: pytest.TempPathFactory, name: str
) -> None:
    """Whatever the plan says."""
    proxy, chain = served
    chunks = ChunkMap.open(proxy.chains[str(chain)][1].chunk_map).ids()
    proxy.plans[str(chain)] = Plan(chain_id=str(chain), chunks=tuple(PLANS[name](chunks)), starts=3)
    root = tmp_path_factory.mktemp("h")
    with Node(root, [proxy.url]) as node:
        node.command("mount", "--start", IMAGE, root / "mnt")
        sums = {path.name: hashlib.sha256(path.read_bytes()).digest() for path in (root / "mnt").iterdir()}
        status = Path(f"/proc/{node.process.pid}/status").read_text()
        node.command("umount", root / "mnt")

    assert sums == {file: hashlib.sha256(data).digest() for file, data in FILES.items()}
    (most_kib,) = (int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert most_kib * 1024 < MOST_MEMORY
