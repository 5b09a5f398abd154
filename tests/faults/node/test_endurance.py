"""Everything at once: many readers, a node cache that is too small, and kills of both sides."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness.endurance import endure
from harness.fault_rows import Seen

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
]


@pytest.mark.fault(
    "load: 64 readers under evictions and kills",
    done="64 readers at random places of three images, a node cache of a quarter of these, kill -9 of proxy and daemon "
    "by turns at random moments; minutes of it: load_tests/endurance.py",
    promised="every sum is right, no read fails",
)
def test_sums_are_right_whatever_is_killed_and_evicted(root: Path, seen: Seen) -> None:
    """The short version; growth needs minutes to show, and is only told here."""
    outcome = endure(root, seconds=12, images=3, file_mib=3, kill_every=(1.5, 3.0))
    assert outcome.problems == []
    assert outcome.proxy_kills >= 1
    assert outcome.daemon_kills >= 1
    seen(
        f"{outcome.reads} reads, {outcome.proxy_kills} kills of the proxy, {outcome.daemon_kills} of the daemon, "
        f"longest read {outcome.longest_seconds:.1f} s"
    )
