"""Quotas hold, whatever comes through."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness.churn import churn
from harness.fault_rows import Seen

MIB = 1 << 20


@pytest.mark.slow
@pytest.mark.fault(
    "quotas: an hour of traffic through small stores",
    done="3 GiB of chunks through a store of 256 MiB, as the node and as the proxy keeps it, beside a mounted chain of "
    "64 MiB that is read; 20 GiB: load_tests/churn.py",
    promised="live bytes within the quota and disk use within 10 % of them at every look; nothing of the mounted chain "
    "is evicted, reads in flight keep their bytes",
)
@pytest.mark.parametrize("side", ["node", "proxy"])
def test_quotas_hold_under_churn(tmp_path: Path, side: str, seen: Seen) -> None:
    """At every sample, not only in the end."""
    outcome = churn(tmp_path, logical_bytes=3072 * MIB, quota_bytes=256 * MIB, durable=side == "proxy")
    assert outcome.lost == []
    assert outcome.evicted_chunks > 10_000
    assert outcome.largest_live <= 1
    assert outcome.largest_file <= 1.10
    seen(f"{side}: at most {outcome.largest_live:.0%} of the quota, {outcome.largest_file - 1:.1%} more on disk")
