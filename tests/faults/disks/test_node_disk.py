"""The disk of the node cache is full, or fails: who reads gets the bytes from the proxy."""

from __future__ import annotations

import hashlib
import os
import random
import re
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from fakes.layers import Content, layers
from fakes.node_api import FakeProxy
from harness.failing_disk import FailingDisk, until_forgotten
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
        """By reading: what the disk did not take is offered to it again when somebody wants it."""

        def is_local() -> bool:
            assert self.reads()
            (chain,) = self.daemon.status(local=True).chains
            return chain.local_chunks == chain.chunks

        until(is_local, "everything is in the node cache", every=0.5)


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
    "local again once the disk works",
)
def test_bytes_that_the_disk_does_not_give_come_from_the_proxy(root: Path, disk: FailingDisk, seen: Seen) -> None:
    """Also for chunks that were read and verified before: their pages may be gone."""
    with mounted_chain(root, disk.path / "cache") as chain:
        assert chain.reads()
        chain.until_local()
        chain.node.restart()
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


@pytest.mark.fault(
    "node disk: the index of the node cache can not be read",
    done="kill -9 of the daemon, the index forgotten by the page cache, every read of the disk fails, a new daemon",
    promised="the cache begins anew, in memory while the disk fails altogether; reads go on from the proxy. While a "
    "daemon runs, a lost index page is SIGBUS: readers wait for the next daemon",
)
def test_a_cache_whose_index_is_lost_begins_anew(root: Path, disk: FailingDisk, seen: Seen) -> None:
    """No daemon that dies at its start again and again."""
    with mounted_chain(root, disk.path / "cache") as chain:
        assert chain.reads()
        chain.until_local()
        chain.node.kill()
        until_forgotten(disk, "cache/index/data.mdb", offset=8192)
        with disk.failing("reads"):
            chain.node.start()
            assert chain.reads()
            assert chain.metric("cache_failing") == bool(chain.log_lines("can not be opened"))
        began_anew = bool(chain.log_lines("starting with an empty store"))
        if chain.metric("cache_failing"):  # more than the index was lost: names, or the list of free blocks
            chain.node.restart()
        assert chain.reads()
        chain.until_local()
        seen("begun anew" if began_anew else "in memory until the next start")


@pytest.mark.fault(
    "node disk: full",
    done="others fill the disk of the node cache, then leave",
    promised="reads go on uncached, one log line and two metrics say so; cached again when there is room",
)
def test_a_full_disk_is_an_uncached_node(root: Path, disk: FailingDisk, seen: Seen) -> None:
    """Begins and ends with one log line each."""
    with mounted_chain(root, disk.path / "cache") as chain:
        ballast = disk.path / "ballast"
        fill(ballast)
        assert chain.reads()
        until(lambda: chain.metric("store_failures_total") >= 1, "the metric tells")
        assert chain.reads()
        lines = chain.log_lines("served uncached")
        assert chain.daemon.status().cache.failure
        ballast.unlink()
        chain.until_local()
        assert len(chain.log_lines("the node cache takes bytes again")) == len(lines) == 1
        seen(f"{chain.metric('uncached_chunks_total'):.0f} chunks uncached, 1 log line, then all cached")


@pytest.mark.fault(
    "node disk: EIO on writes of the node cache",
    done="the disk fails every write and flush, then works again",
    promised="no wrong byte and no error; what may be lost is checked against its id again",
)
def test_writes_that_fail_lose_nothing_but_time(root: Path, disk: FailingDisk, seen: Seen) -> None:
    """The kernel takes the bytes and fails later, so that nobody who wrote gets to know at once."""
    with mounted_chain(root, disk.path / "cache") as chain:
        with disk.failing("writes"):
            assert chain.reads()
            os.sync()
            assert chain.reads()
        asked = len(chain.proxy.requests)
        chain.node.restart()
        disk.forget("cache/*.chunks")
        assert chain.reads(), "what the disk has lost is fetched anew"
        chain.until_local()
        seen(f"{len(chain.proxy.requests) - asked} more requests, same bytes")


def fill(file: Path) -> None:
    """Take every block that is left."""
    with file.open("wb", buffering=0) as taken:
        for piece in (1 << 20, 1024):
            with suppress(OSError):
                while taken.write(bytes(piece)):
                    pass
