"""``kill -9`` of whoever writes to a chunk store, at any moment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_writers.py")


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("rounds", "writers"), [pytest.param(40, 1, id="one-writer"), pytest.param(8, 3, id="three-writers")]
)
def test_a_killed_writer_leaves_a_right_store(tmp_path: Path, rounds: int, writers: int) -> None:
    """Every chunk that shows has its own bytes, the accounts equal a recount, and no space is lost."""
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), str(tmp_path / "store"), str(rounds), str(writers)],
        capture_output=True,
        text=True,
        timeout=570,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    outcome = json.loads(done.stdout)
    assert outcome["rounds"] == rounds
    assert outcome["chunks"] > rounds
