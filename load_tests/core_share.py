"""Holds processes to a share of a core each (cgroups, version 1 or 2), so that their client has room."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")
_PERIOD_US = 10_000  # short: else a burst, and then nothing, is all that a brief run sees


@contextlib.contextmanager
def held(pids: Iterable[int], share: float) -> Iterator[None]:
    """Each process of its own group. Raise ``OSError`` where this machine does not let us."""
    with contextlib.ExitStack() as stack:
        for pid in pids:
            stack.enter_context(_group(pid, share))
        yield


@contextlib.contextmanager
def _group(pid: int, share: float) -> Iterator[None]:
    is_v2 = (_ROOT / "cgroup.controllers").exists()
    parent = _ROOT if is_v2 else _ROOT / "cpu"
    group = parent / f"fastpull-load-{os.getpid()}-{pid}"
    group.mkdir()
    quota = int(_PERIOD_US * share)
    try:
        if is_v2:
            (group / "cpu.max").write_text(f"{quota} {_PERIOD_US}")
        else:
            (group / "cpu.cfs_period_us").write_text(str(_PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota))
        (group / "cgroup.procs").write_text(str(pid))
        yield
    finally:
        for line in (group / "cgroup.procs").read_text().split():
            with contextlib.suppress(OSError):
                (parent / "cgroup.procs").write_text(line)
        group.rmdir()
