"""The table that a load test prints, and the JSON that it leaves: ``{"machine": {…}, "rows": [{…}]}``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Row:
    case: str
    value: float
    unit: str
    target: float | None = None
    at_most: bool = False  # the target is an upper bound

    @property
    def is_met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass
class Report:
    """Rows, printed as they come."""

    title: str
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        facts = machine()
        print(f"{self.title}\n{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB, "
              f"Linux {facts['kernel']}, Python {facts['python']}, load {facts['load']}\n")  # fmt: skip
        print(f"{'case':40} {'value':>12}  {'unit':18} {'target':>10}")

    def add(
        self, case: str, value: float, unit: str, *, at_least: float | None = None, at_most: float | None = None
    ) -> None:
        row = Row(case, round(value, 4), unit, at_least if at_most is None else at_most, at_most is not None)
        self.rows.append(row)
        bound = "" if row.target is None else f"{'≤' if row.at_most else '≥'} {row.target:g}"
        verdict = {None: "", True: "  met", False: "  MISSED"}[row.is_met]
        print(f"{case:40} {value:12.4g}  {unit:18} {bound:>10}{verdict}", flush=True)

    def write(self, path: Path) -> None:
        document = {"machine": machine(), "rows": [asdict(row) for row in self.rows]}
        path.write_text(json.dumps(document, indent=2) + "\n")


def machine() -> dict[str, object]:
    """What the figures were measured on. ``load`` says how much else went on."""
    return {
        "cpu": _first_line_value("/proc/cpuinfo", "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def main(title: str, measure: Callable[[Report, argparse.Namespace], None], parser: argparse.ArgumentParser) -> None:
    """Run ``measure`` from the command line. Exit code 1 when a target is missed and ``--strict`` is given.

    What was measured until something failed is written all the same.
    """
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there too")
    parser.add_argument("--strict", action="store_true", help="fail when a target is missed")
    args = parser.parse_args()
    report = Report(title)
    try:
        measure(report, args)
    finally:
        if args.json is not None:
            report.write(args.json)
    if args.strict and any(row.is_met is False for row in report.rows):
        sys.exit(1)


def _first_line_value(path: str, key: str) -> str:
    for line in Path(path).read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return platform.machine()
