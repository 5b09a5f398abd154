"""``kill -9`` of whoever writes to a chunk store, at any moment."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from harness.fault_rows import Seen

SCRIPT = Path(__file__).with_name("killed_writers.py")


@pytest.mark.fault(
    "chunk store: writers killed",
    done="kill -9 of one and of three writers at random moments",
    promised="each chunk that shows has its bytes, the accounts are right, no space is lost",
)
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("rounds", "writers"), [pytest.param(40, 1, id="one-writer"), pytest.param(8, 3, id="three-writers")]
)
def test_a_killed_writer_leaves_a_right_store(tmp_path: Path, rounds: int, writers: int, seen: Seen) -> None:
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
    seen(f"{rounds * writers} kills, {outcome['chunks']} chunks verified")
