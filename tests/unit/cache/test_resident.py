"""What a process has freed is not its memory any more."""

import subprocess
import sys

SCRIPT = """
from pathlib import Path
from fastpull.cache.resident import return_freed_memory

def anonymous_mib():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024

parts = [bytes(32 << 10) for _ in range(2000)]
last = parts[-1]  # at the end of the heap: all before it stays, though it is free
del parts
before = anonymous_mib()
return_freed_memory()
print(before, anonymous_mib(), len(last))
"""


def test_freed_memory_goes_back_to_the_system() -> None:
    command = [sys.executable, "-P", "-c", SCRIPT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)

    before, after, _ = map(int, done.stdout.split())

    assert before - after >= 50
