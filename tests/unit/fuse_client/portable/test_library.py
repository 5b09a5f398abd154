"""What the process of a mount imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("pyfuse3")


@pytest.mark.parametrize("before", ["", "import trio; real = trio.run"], ids=["alone", "beside a user of trio"])
def test_trio_is_neither_needed_nor_harmed(before: str) -> None:
    """pyfuse3 comes without it and takes asyncio instead; who has imported it already, keeps it."""
    if before:
        pytest.importorskip("trio")
    after = "assert trio.run is real" if before else "import sys; assert 'trio' not in sys.modules"
    script = f"""
{before}
from fastpull.fuse_client.portable.library import pyfuse3
pyfuse3.asyncio.enable()
assert pyfuse3.trio.Lock
{after}
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr


def test_package_metadata_is_neither_needed_nor_harmed() -> None:
    """What a mount's process imports does not bring it; who wants it later gets the real one."""
    script = """
import sys
before = "importlib.metadata" in sys.modules
import fastpull.fuse_client.portable.kernel
assert ("importlib.metadata" in sys.modules) == before
import importlib.metadata
assert importlib.metadata.version("pyfuse3")[0].isdigit()
"""
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
