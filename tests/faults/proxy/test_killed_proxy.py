"""``kill -9`` of a proxy that pulls, ingests, learns, evicts and purges, at two hundred random moments."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from harness.fault_rows import Seen

SCRIPT = Path(__file__).with_name("killed_proxy.py")
KILLS = 216


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.fault(
    "proxy: killed at 216 random moments",
    done="kill -9 of it and its worker during fills, ingests, commits, learning, evictions, purges and while it opens",
    promised="every visible chunk, blob, index, bootstrap and plan is right, the books equal the disk, work goes on",
)
def test_a_killed_proxy_leaves_only_what_is_right(tmp_path: Path, seen: Seen) -> None:
    """After each kill all that shows verifies, and nothing lies on the disk but that and partial blobs; in the end
    every image becomes ready. The seed is in the message.
    """
    seed = random.SystemRandom().randrange(1 << 30)
    done = subprocess.run(
        [sys.executable, "-P", str(SCRIPT), str(tmp_path), str(KILLS), str(seed)],
        capture_output=True,
        text=True,
        timeout=870,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, ""), f"seed {seed}"
    outcome = json.loads(done.stdout)
    assert (outcome["kills"], outcome["real"]) == (KILLS, KILLS // 9)
    assert outcome["checked"] > KILLS, "there was something to look at"
    assert outcome["partials"] > 0, "fills were killed too"
    assert len(outcome["bootstraps"]) == 5
    seen(
        f"{KILLS} kills, {outcome['real']} of them of `serve`; {outcome['checked']:,} things verified, "
        f"{outcome['partials']} partial blobs taken up"
    )
