"""Random wrong input for every parser of the mirror: ``fuzz.py [INPUTS_PER_PARSER]``, default 1,000,000 in all."""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from fakes.mirror_parsers import PARSERS
from fakes.mutations import mutated


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else -(-1_000_000 // len(PARSERS))
    seed = random.randrange(2**32)
    failures = 0
    for name, parser in PARSERS.items():
        started = time.perf_counter()
        refused = 0
        for _, text in zip(range(count), mutated(parser.corpus, random.Random(seed)), strict=False):
            try:
                parser.parse(text)
            except parser.errors:
                refused += 1
            except Exception as exc:  # noqa: BLE001 - what this looks for
                failures += 1
                print(f"{name}: {exc!r} for {text!r}")
        seconds = time.perf_counter() - started
        print(f"{name:20} {count:9,} inputs  {refused / count:6.1%} refused  {seconds:5.1f} s")
    print(f"seed {seed}: {failures} undeclared failures of {count * len(PARSERS):,} inputs")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
