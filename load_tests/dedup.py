"""How many bytes of a package's next version are new, by what is compared: whole files, fixed pieces, our chunks.

.venv/bin/python load_tests/dedup.py [--json FILE] [--cache DIR] [--pair NAME==OLD,NAME==NEW …]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

from packages import files_of, wheel
from report import Report, main

from fastpull.cache.digest import chunk_id
from fastpull.image.chunking import Chunker

PAIRS = (
    "nvidia-cublas-cu12==12.6.3.3,nvidia-cublas-cu12==12.6.4.1",
    "triton==3.3.0,triton==3.3.1",
    "pyarrow==19.0.0,pyarrow==19.0.1",
)
# Ours at most half of whole files, where a release leaves most of the code as it is. A new triton brings a new
# LLVM: half of its bytes are new however finely it is cut (51 % with chunks of 37 KiB).
_HALF = ("nvidia-cublas-cu12",)
_FIXED = 256 << 10

Cut = Callable[[bytes], Iterator[tuple[bytes, int]]]


def whole_file(data: bytes) -> Iterator[tuple[bytes, int]]:
    yield chunk_id(data), len(data)


def fixed(data: bytes) -> Iterator[tuple[bytes, int]]:
    for at in range(0, len(data), _FIXED):
        part = data[at : at + _FIXED]
        yield chunk_id(part), len(part)


def ours(data: bytes) -> Iterator[tuple[bytes, int]]:
    for chunk, part in Chunker().whole(memoryview(data)):
        yield chunk, len(part)


METHODS: dict[str, Cut] = {"whole_file": whole_file, "fixed_256k": fixed, "ours": ours}


def new_shares(old: Path, new: Path) -> tuple[dict[str, float], int]:
    """The share of ``new``'s bytes that ``old`` does not have, by method, and the average size of our chunks."""
    known: dict[str, set[bytes]] = {name: set() for name in METHODS}
    for data in files_of(old):
        for name, cut in METHODS.items():
            known[name].update(piece for piece, _ in cut(data))
    fresh = dict.fromkeys(METHODS, 0)
    total = count = 0
    for data in files_of(new):
        total += len(data)
        for name, cut in METHODS.items():
            for piece, size in cut(data):
                count += name == "ours"
                if piece not in known[name]:
                    known[name].add(piece)
                    fresh[name] += size
    return {name: size / total for name, size in fresh.items()}, total // count


def measure(report: Report, args: argparse.Namespace) -> None:
    for pair in args.pair or PAIRS:
        old, new = pair.split(",")
        label = f"{new.partition('==')[0]} {old.partition('==')[2]} → {new.partition('==')[2]}"
        shares, average = new_shares(wheel(old, args.cache), wheel(new, args.cache))
        print(f"\n{label}: chunks of {average / 1024:.1f} KiB on average")
        package = new.partition("==")[0]
        for name in ("whole_file", "fixed_256k"):
            report.add(f"new_bytes_{name} {package}", shares[name], "share")
        half = shares["whole_file"] / 2 if package in _HALF else None
        report.add(f"new_bytes_ours {package}", shares["ours"], "share", at_most=half)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path("/var/tmp/fastpull-load"), help="keeps the downloads")
    parser.add_argument("--pair", action="append", help="two versions of a package, instead of the default ones")
    main("Deduplication between two versions of real packages", measure, parser)
