"""``kill -9`` of the node daemon, again and again, with ten chains mounted and read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from faults.node.conftest import Images
from harness.checked_readers import CheckedReaders
from harness.fault_rows import Seen
from harness.node import Node
from harness.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

CHAINS = 10
KILLS = 8
# Half of what the images hold: there is always something that has to come from the proxy.
SETTINGS = '[cache]\nmax_bytes = "24 MiB"\n[trace]\nsettle_seconds = 3600\n'


@pytest.mark.fault(
    "node daemon: killed again and again under readers",
    done="ten chains mounted and read, local and remote data; kill -9 of the daemon 8 times, a new one at once",
    promised="no read fails, no byte is wrong; a read waits for the restart, below 2 s on an idle machine",
)
def test_ten_chains_outlive_their_daemon(root: Path, seen: Seen) -> None:
    """Readers of local and of remote data wait; none gets an error or a wrong byte."""
    images = Images(root / "references", count=CHAINS, file_bytes=5 << 20)
    with images.proxy.in_thread(), Node(root / "n", [images.proxy.url], extra_settings=SETTINGS) as node:
        files = images.mount_all(node)
        with CheckedReaders(root / "readers", files, readers=CHAINS) as readers:
            for _ in range(KILLS):
                before = readers.counts()
                until(lambda before=before: readers.have_all_read_since(before), "all readers go on")  # type: ignore[misc]
                node.kill()
                node.process.start()
            before = readers.counts()
            until(lambda: readers.have_all_read_since(before), "all readers go on")
        assert readers.problems == []
        seen(f"longest of {readers.reads} reads {readers.longest_seconds:.1f} s, no error")
