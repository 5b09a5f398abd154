"""``fastpull-node doctor``: checks a node before it goes live."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from fastpull.config.node import NodeSettings
from fastpull.fuse_client.doctor import Finding, examine
from fastpull.fuse_client.doctor_facts import gather


def doctor(settings: NodeSettings, *, containerd_config: Path, as_json: bool) -> int:
    """Run the command; return the exit code: 1 when something has to be mended."""
    facts = asyncio.run(gather(settings, containerd_config=containerd_config))
    findings = examine(facts, settings)
    if as_json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(findings)).decode() + "\n")
    else:
        sys.stdout.writelines(line + "\n" for line in report_lines(findings))
    return int(any(finding.verdict == "fail" for finding in findings))


def report_lines(findings: Iterable[Finding]) -> Iterator[str]:
    """One line for each finding, and one for its remedy. Pure."""
    for finding in findings:
        yield f"{finding.verdict:<4}  {finding.check:<11}  {finding.text}"
        if finding.remedy:
            yield f"{'':<19}remedy: {finding.remedy}"
