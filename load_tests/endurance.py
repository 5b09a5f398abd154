"""64 readers at random places for minutes, with evictions on the node and kills of proxy and daemon by turns.

Every read is compared with what should stand there. Growth is that of the medians, from the first third of the time
to the last, of processes older than three seconds; a leak that outlives no kill would still show in the last third,
where the same process serves longer the fewer kills there are.

    .venv/bin/python load_tests/endurance.py [--minutes 5] [--json FILE]

Needs root.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from harness.endurance import endure
from harness.mounts import unmount_all_below
from report import Report, main


def measure(report: Report, args: argparse.Namespace) -> None:
    root = Path(tempfile.mkdtemp(prefix="fpe", dir=args.work))
    try:
        outcome = endure(root, seconds=args.minutes * 60, kill_every=(10.0, 30.0))
    finally:
        unmount_all_below(root)
        shutil.rmtree(root, ignore_errors=True)
    report.add("reads", outcome.reads, "reads")
    report.add("wrong_or_failed_reads", len(outcome.problems), "reads", at_most=0)
    report.add("longest_read_s", outcome.longest_seconds, "s")
    report.add("kills_of_proxy", outcome.proxy_kills, "kills")
    report.add("kills_of_daemon", outcome.daemon_kills, "kills")
    for role, usage in (("proxy", outcome.proxy), ("daemon", outcome.daemon)):
        memory, descriptors = usage.growth()
        report.add(f"{role}_memory_mib", max(usage.anonymous_mib, default=0), "MiB, anonymous, at most")
        report.add(f"{role}_memory_growth_mib", memory, "MiB", at_most=20)
        report.add(f"{role}_descriptors", max(usage.descriptors, default=0), "descriptors, at most")
        report.add(f"{role}_descriptor_growth", descriptors, "descriptors", at_most=20)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--work", type=Path, default=Path("/tmp"), help="where stores and images go; a short path")
    main("Endurance", measure, parser)
