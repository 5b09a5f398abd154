"""Readers under evictions and restarts, for as long as somebody likes; what it cost is measured."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from harness.checked_readers import CheckedReaders
from harness.images import ImageMaker
from harness.node import Node
from harness.oci import directory, file
from harness.proxy import Proxy
from harness.registry import Registry
from harness.waiting import until

_MIB = 1 << 20
_FILES = 2  # in each image
PATIENCE_SECONDS = 240.0  # until every reader has had one more answer after the last kill
SETTLED_SECONDS = 3.0  # a process that is younger is not looked at: it is still growing to its size


@dataclass
class Usage:
    """Resident memory (anonymous: what is not a file's), and descriptors, of the processes of one role over time."""

    anonymous_mib: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def look(self, pid: int) -> None:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            count = len(os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            return
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                self.anonymous_mib.append(int(line.split()[1]) / 1024)
                self.descriptors.append(count)

    def growth(self) -> tuple[float, float]:
        """MiB and descriptors, from the first third of the time to the last."""
        return _growth(self.anonymous_mib), _growth(self.descriptors)


@dataclass
class Outcome:
    reads: int = 0
    longest_seconds: float = 0.0
    proxy_kills: int = 0
    daemon_kills: int = 0
    problems: list[str] = field(default_factory=list)
    proxy: Usage = field(default_factory=Usage)
    daemon: Usage = field(default_factory=Usage)


def endure(
    root: Path,
    *,
    seconds: float,
    readers: int = 64,
    images: int = 4,
    file_mib: int = 8,
    kill_every: tuple[float, float] = (4.0, 10.0),
    seed: int = 0,
) -> Outcome:
    """``readers`` at random places of ``images``, through a node cache of a quarter of what they hold, while proxy and
    daemon are killed by turns. ``root`` is short; needs root.

    The proxy's store holds all of it: a chunk that was evicted there comes back by ingesting its layer, and with random
    reads of more than the store holds nothing else would be done.
    """
    rng = random.Random(seed)
    total = images * _FILES * file_mib
    outcome = Outcome()
    node_settings = f'[cache]\nmax_bytes = "{max(8, total // 4)} MiB"\n[trace]\nenabled = false\n'
    with Registry(root / "registry") as registry:
        names, references = _push(root, registry, images, file_mib)
        with Proxy(root / "proxy", [registry]) as proxy:
            for name in names:
                proxy.warm(name)
            with Node(root / "n", [proxy.url], extra_settings=node_settings) as node:
                files = {}
                for number, name in enumerate(names):
                    node.command("mount", name, root / f"mnt{number}")
                    for index in range(_FILES):
                        files[root / f"mnt{number}" / f"data/{index}"] = references[number, index]
                with CheckedReaders(root / "r", files, readers=readers, read_bytes=64_000, pause_seconds=0.02) as crowd:
                    _disturb(proxy, node, crowd, outcome, rng, seconds, kill_every)
                    before = crowd.counts()
                    try:
                        until(lambda: crowd.have_all_read_since(before, reads=1), "all go on", seconds=PATIENCE_SECONDS)
                    except AssertionError:
                        waiting = sum(now == then for now, then in zip(crowd.counts(), before, strict=True))
                        outcome.problems.append(f"{waiting} readers got no answer in {PATIENCE_SECONDS:.0f} s")
                outcome.problems += crowd.problems
                outcome.reads, outcome.longest_seconds = crowd.reads, crowd.longest_seconds
    return outcome


def _push(root: Path, registry: Registry, images: int, file_mib: int) -> tuple[list[str], dict[tuple[int, int], Path]]:
    maker = ImageMaker(root / "images", registry)
    names, references = [], {}
    for number in range(images):
        entries = [directory("data")]
        for index in range(_FILES):
            data = random.Random(f"{number}.{index}").randbytes(file_mib * _MIB)
            references[number, index] = root / f"reference{number}.{index}"
            references[number, index].write_bytes(data)
            entries.append(file(f"data/{index}", data))
        names.append(maker.push(entries))
    return names, references


def _disturb(
    proxy: Proxy,
    node: Node,
    crowd: CheckedReaders,
    outcome: Outcome,
    rng: random.Random,
    seconds: float,
    kill_every: tuple[float, float],
) -> None:
    end = time.monotonic() + seconds
    born = {"proxy": time.monotonic(), "daemon": time.monotonic()}
    next_kill = time.monotonic() + rng.uniform(*kill_every)
    while (now := time.monotonic()) < end:
        assert crowd.problems == []
        for role, process, usage in (
            ("proxy", proxy.process, outcome.proxy),
            ("daemon", node.process, outcome.daemon),
        ):
            if now - born[role] >= SETTLED_SECONDS:
                usage.look(process.pid)
        if now >= next_kill and now < end - kill_every[0]:
            role = "proxy" if outcome.proxy_kills <= outcome.daemon_kills else "daemon"
            if role == "proxy":
                proxy.process.kill()
                proxy.process.start()
                outcome.proxy_kills += 1
            else:
                node.kill()
                node.process.start()
                outcome.daemon_kills += 1
            born[role] = time.monotonic()
            next_kill = time.monotonic() + rng.uniform(*kill_every)
        time.sleep(0.5)
    _wait_for_both(proxy.is_ready, node)


def _wait_for_both(proxy_is_ready: Callable[[], bool], node: Node) -> None:
    until(proxy_is_ready, "the proxy is ready")
    until(node.status, "the daemon answers", ignore=(AssertionError,), every=0.5)


def _growth(values: list[float] | list[int]) -> float:
    third = len(values) // 3
    return statistics.median(values[-third:]) - statistics.median(values[:third]) if third else 0.0
