"""The disk of the node cache is full, or fails: who reads gets the bytes from the proxy."""

from __future__ import annotations

import hashlib
import os
import random
import re
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes.layers import Content, layers
from fakes.node_api import FakeProxy
from harness.failing_disk import FailingDisk
from harness.fault_rows import Seen
from harness.node import Node
from harness.processes import free_port, run
from harness.waiting import until

from fastpull.cache.digest import Digest
from fastpull.fuse_client.cli.connection import DaemonConnection

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

_READ = """
import hashlib, os, sys
descriptor = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
pieces = [os.pread(descriptor, 1 << 20, at) for at in range(0, int(sys.argv[2]), 1 << 20)]
print(hashlib.sha256(b"".join(pieces)).hexdigest())
"""
DATA = random.Random(3).randbytes(6 << 20)


class MountedChain:
    """A node whose cache lies where the test says, and a mounted file of DATA."""

    def __init__(self, node: Node, proxy: FakeProxy, chain: Digest, metrics_port: int) -> None:
        self.node = node
        self.proxy = proxy
        self.daemon = DaemonConnection(node.run_dir)
        self.path = self.daemon.mount(str(chain), "test") / "data"
        self._metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"

    def reads(self, length: int = len(DATA)) -> bool:
        """Whether so much of the file is right, read by the daemon and not out of the page cache.

        In a process that can be killed when the daemon never answers.
        """
        output = run(sys.executable, "-I", "-S", "-c", _READ, self.path, str(length))
        return output.strip() == hashlib.sha256(DATA[:length]).hexdigest()

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(self._metrics_url, timeout=60) as answer:
            text = answer.read().decode()
        found = re.search(rf"^fastpull_node_{name} ([0-9.e+]+)$", text, re.MULTILINE)
        assert found, name
        return float(found[1])

    def log_lines(self, about: str) -> list[str]:
        return [line for line in self.node.process.log.read_text().splitlines() if about in line]

    def until_local(self) -> None:
        def is_local() -> bool:
            (chain,) = self.daemon.status(local=True).chains
            return chain.local_chunks == chain.chunks

        until(is_local, "everything is in the node cache", every=0.2)


@contextmanager
def mounted_chain(root: Path, cache: Path) -> Iterator[MountedChain]:
    content = Content(50_000)
    proxy = FakeProxy()
    chain = proxy.add_image("demo:1", layers([content.file(b"data", DATA)]), content.chunks)
    port = free_port()
    cache.mkdir(exist_ok=True)
    (root / "n" / "data").mkdir(parents=True)
    (root / "n" / "data" / "cache").symlink_to(cache)
    settings = f'metrics_port = {port}\n[cache]\nmax_bytes = "64 MiB"\n[prefetch]\nenabled = false\n'
    with proxy.in_thread():
        with Node(root / "n", [proxy.url]) as node:
            node.config.write_text(f"metrics_port = {port}\n" + node.config.read_text() + settings.split("\n", 1)[1])
            node.restart()
            yield MountedChain(node, proxy, chain, port)


@pytest.mark.fault(
    "node disk: EIO on reads of the node cache",
    done="everything local and forgotten by the page cache; the disk fails every read",
    promised="chunks come from the proxy, one log line and a metric say so, the daemon does not die (SIGBUS); "
    "local again once the disk works. Before Linux 5.14 the daemon dies, and readers wait for the next one",
)
def test_bytes_that_the_disk_does_not_give_come_from_the_proxy(root: Path, disk: FailingDisk, seen: Seen) -> None:
    """Also for chunks that were read and verified before: their pages may be gone."""
    with mounted_chain(root, disk.path / "cache") as chain:
        assert chain.reads()
        chain.until_local()
        chain.node.restart()  # nothing is mapped
        assert chain.reads(len(DATA) // 2), "and is verified from here on"
        pid = chain.daemon.status().pid
        asked = len(chain.proxy.requests)

        def is_forgotten() -> bool:
            disk.forget("cache/*.chunks")
            return chain.reads() and len(chain.proxy.requests) > asked

        with disk.failing("reads"):
            until(is_forgotten, "the daemon needs the disk", every=0.5)
            until(lambda: chain.metric("damaged_chunks") > 0, "the metric tells")
            damaged = chain.metric("damaged_chunks")
            lines = len(chain.log_lines("damaged chunks in the node cache"))
        assert chain.daemon.status().pid == pid, "the daemon has died"
        assert lines >= 1
        assert chain.reads()
        chain.until_local()
        asked = len(chain.proxy.requests)
        assert chain.reads()
        assert len(chain.proxy.requests) == asked, "all of it is local again"
        seen(f"{damaged:.0f} chunks fetched anew, {lines} log lines, same daemon")
