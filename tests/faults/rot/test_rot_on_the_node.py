"""Flipped bits in what a node keeps, under the real kernel: no reader gets one, ``scrub`` finds and mends them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.layers import Content, directory, layers
from fakes.node_api import FakeProxy
from harness.fault_rows import Seen
from harness.lab import drop_page_cache
from harness.mounts import unmount_all_below
from harness.node import Node
from harness.processes import run
from harness.waiting import until

from fastpull.fuse_client.chain_files import BOOTSTRAP, CHUNK_MAP

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]

FILES = 40
SIZE = 60_000


class Image:
    """Files, their sums, and the proxy that has them."""

    def __init__(self) -> None:
        source = random.Random(11)
        content = Content(20_000)
        self.files = {f"lib/m{n:02}.so": source.randbytes(SIZE) for n in range(FILES)}
        entries = [directory(b"lib"), *(content.file(name.encode(), data) for name, data in self.files.items())]
        self.proxy = FakeProxy()
        self.chain = self.proxy.add_image("demo:1", layers(entries), content.chunks)

    def sums(self) -> str:
        return "".join(f"{hashlib.sha256(data).hexdigest()}  ./{name}\n" for name, data in sorted(self.files.items()))


@pytest.fixture
def image() -> Iterator[Image]:
    image = Image()
    with image.proxy.in_thread():
        yield image


@pytest.fixture(params=["erofs"])
def node(image: Image, request: pytest.FixtureRequest) -> Iterator[Node]:
    root = Path(tempfile.mkdtemp(prefix="fpn-", dir="/tmp"))  # short: unix sockets end after 107 bytes
    try:
        with Node(root / "n", [image.proxy.url], driver=request.param) as node:
            yield node
    finally:
        unmount_all_below(root)
        shutil.rmtree(root)


def sums(path: Path) -> str:
    return run("sh", "-c", "find . -type f | LC_ALL=C sort | xargs sha256sum", cwd=path, seconds=120)


def mounted(node: Node) -> Path:
    """Where the image is mounted and all of it is local."""
    target = node.root.parent / "mnt"
    node.command("mount", "demo:1", target)
    sums(target)

    def all_local() -> bool:
        (chain,) = node.status()["chains"]
        return bool(chain["local_chunks"] == chain["chunks"])

    until(all_local, "everything is in the node cache", every=0.3)
    return target


def flip(path: Path, offset: int) -> None:
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        (byte,) = file.read(1)
        file.seek(offset)
        file.write(bytes((byte ^ 8,)))


def rot_cache(node: Node, count: int) -> None:
    """Flip bits of ``count`` chunks while nobody has read them since the start, as after a night in the rack."""
    node.kill()
    (segment,) = (node.data / "cache").glob("*.chunks")
    for number in range(count):
        flip(segment, (number * 2 + 1) * FILES * SIZE // (2 * count))
    drop_page_cache()
    node.start()


def scrub(node: Node, *options: str) -> dict[str, Any]:
    return dict(json.loads(node.command("scrub", "--json", *options)))


def damaged(outcome: dict[str, Any]) -> dict[str, int]:
    return {kind["kind"]: kind["damaged"] for kind in outcome["kinds"] if kind["damaged"]}


@pytest.mark.fault(
    "rot: chunks in the node cache, scrubbed",
    done="bits of 5 chunks flipped; `fastpull-node scrub`",
    promised="found, dropped, and only those fetched again",
)
def test_rotten_chunks(image: Image, node: Node, seen: Seen) -> None:
    path = mounted(node)
    rot_cache(node, 5)
    before = sum(image.proxy.asked.values())

    outcome = scrub(node, "--rate", "0")

    assert outcome["clean"]
    assert damaged(outcome) == {"chunks": 5}
    assert sums(path) == image.sums()
    assert sum(image.proxy.asked.values()) == before + 5
    assert scrub(node, "--rate", "0")["damaged"] == 0
    seen(f"5 of {outcome['kinds'][1]['checked']} chunks dropped and fetched again; all sums right")


@pytest.mark.fault(
    "rot: chunks in the node cache, under readers, while it is scrubbed",
    done="bits of 20 chunks flipped; two readers of the whole image during `fastpull-node scrub`",
    promised="no reader gets a wrong byte: a chunk is checked at its first read since the daemon's start "
    '(`cache.verify = "always"`: at each)',
)
def test_readers_while_it_is_scrubbed(image: Image, node: Node, seen: Seen) -> None:
    path = mounted(node)
    rot_cache(node, 20)
    command = ["sh", "-c", "find . -type f | LC_ALL=C sort | xargs sha256sum"]
    readers = [subprocess.Popen(command, cwd=path, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        outcome = scrub(node, "--rate", "5MB/s")
        read = [reader.communicate(timeout=120)[0] for reader in readers]
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()

    assert read == [image.sums()] * 2
    assert outcome["clean"]
    assert scrub(node, "--rate", "0")["damaged"] == 0, "found by the readers or by the scrub"
    seen("all sums right, nothing damaged afterwards")


@pytest.mark.parametrize("node", ["erofs", "fuse"], indirect=True)
@pytest.mark.parametrize("name", [BOOTSTRAP, CHUNK_MAP])
@pytest.mark.fault(
    "rot: bootstrap or chunk map under a mounted image, scrubbed",
    done="a bit flipped in the file of a running daemon; `fastpull-node scrub`",
    promised="fetched again and mounted anew for new containers; those that run keep the tree that they have",
)
def test_rotten_chain_files(image: Image, node: Node, name: str, seen: Seen) -> None:
    mounted(node)
    victim = node.data / "chains" / image.chain.hex / name
    flip(victim, victim.stat().st_size // 2)
    fetched = image.proxy.calls["bootstrap"]

    outcome = scrub(node, "--rate", "0")

    assert outcome["clean"], outcome
    assert damaged(outcome) == {"bootstraps and chunk maps": 1}
    assert image.proxy.calls["bootstrap"] == fetched + 1
    (chain,) = node.status()["chains"]
    assert sums(Path(chain["path"])) == image.sums()
    assert chain["users"], "who wanted it still does"
    assert scrub(node, "--rate", "0")["damaged"] == 0
    seen("fetched once, the new mount reads right")


def test_what_can_not_be_mended_now_is_said(image: Image, node: Node) -> None:
    """The proxy no longer has the chain: exit code 1, the cause, and the file is still there for the next try."""
    mounted(node)
    victim = node.data / "chains" / image.chain.hex / CHUNK_MAP
    flip(victim, victim.stat().st_size // 2)
    kept = image.proxy.chains.pop(str(image.chain))

    with pytest.raises(AssertionError, match="can not be dropped"):
        node.command("scrub", "--rate", "0")

    image.proxy.chains[str(image.chain)] = kept
    assert scrub(node, "--rate", "0")["dropped"] == 1
