"""An hour's worth of traffic through both chunk stores, much smaller than it, on a simulated clock.

.venv/bin/python load_tests/churn.py [--gib 20] [--json FILE]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from harness.churn import churn
from report import Report, main

GIB = 1 << 30


def measure(report: Report, args: argparse.Namespace) -> None:
    for side in ("node", "proxy"):
        with tempfile.TemporaryDirectory(dir=args.work) as directory:
            began = time.monotonic()
            outcome = churn(
                Path(directory), logical_bytes=int(args.gib * GIB), quota_bytes=GIB // 2, durable=side == "proxy"
            )
            seconds = time.monotonic() - began
        report.add(f"{side}_traffic_gib", outcome.logical_bytes / GIB, "GiB")
        report.add(f"{side}_rate_mb_s", outcome.logical_bytes / seconds / 1e6, "MB/s")
        report.add(f"{side}_evicted_chunks", outcome.evicted_chunks, "chunks")
        report.add(f"{side}_live_of_quota", outcome.largest_live, "at every look", at_most=1)
        report.add(f"{side}_disk_of_live", outcome.largest_file, "at every look", at_most=1.10)
        report.add(f"{side}_lost", len(outcome.lost), "mounted chunks", at_most=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=20.0)
    parser.add_argument("--work", type=Path, default=Path("/var/tmp"), help="where the stores go; a real disk")
    main("Churn", measure, parser)
