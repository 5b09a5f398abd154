"""Readers that never stop: random places of mounted files, compared with what should stand there.

with CheckedReaders(directory, {mounted: reference, ...}, readers=10) as readers:
    ...                                # break things
    until(lambda: readers.reads > 100, "the readers go on")
assert readers.problems == []
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Self

_COUNTERS = struct.Struct("<Qd")  # reads done, longest of them in seconds; one for each reader


class CheckedReaders:
    """Threads of one process of their own, so that a read that hangs hangs nobody else."""

    def __init__(
        self,
        directory: Path,
        files: Mapping[Path, Path],
        *,
        readers: int,
        read_bytes: int = 100_000,
        pause_seconds: float = 0.002,
    ) -> None:
        """``files``: what is read, and a plain file with the same content. A read has up to ``read_bytes``."""
        directory.mkdir(parents=True, exist_ok=True)
        self._counters = directory / "counters"
        self._problems = directory / "problems"
        self._job = directory / "job.json"
        job = {
            "files": [[str(mounted), str(reference)] for mounted, reference in files.items()],
            "readers": readers,
            "read_bytes": read_bytes,
            "pause_seconds": pause_seconds,
        }
        self._job.write_text(json.dumps(job))
        self._readers = readers
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._counters.write_bytes(bytes(_COUNTERS.size * self._readers))
        self._problems.write_bytes(b"")
        self._process = subprocess.Popen([sys.executable, "-P", __file__, str(self._job)], stdin=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:  # somebody waits for an answer for ever, which the test will say
            self._process.kill()
            self._process.wait(60)
            self._note("a read never came back")

    def counts(self) -> list[int]:
        """Reads that were done, by reader. All of them were right, or are among the problems."""
        return [count for count, _ in self._rows()]

    @property
    def reads(self) -> int:
        return sum(self.counts())

    @property
    def longest_seconds(self) -> float:
        """The longest that a read took which has come back."""
        return max(seconds for _, seconds in self._rows())

    @property
    def problems(self) -> list[str]:
        """Errors and wrong bytes."""
        return self._problems.read_text().splitlines()

    def have_all_read_since(self, before: list[int], *, reads: int = 2) -> bool:
        """Whether every reader has done so many reads since ``before = counts()``. Fail on the first problem."""
        assert self.problems == []
        return all(now - then >= reads for now, then in zip(self.counts(), before, strict=True))

    def _rows(self) -> list[tuple[int, float]]:
        return [(count, seconds) for count, seconds in _COUNTERS.iter_unpack(self._counters.read_bytes())]

    def _note(self, problem: str) -> None:
        with self._problems.open("a") as file:
            file.write(problem + "\n")


def _read_on(number: int, job: dict, counters: mmap.mmap, problems: int, stop: threading.Event) -> None:  # type: ignore[type-arg]
    rng = random.Random(number)
    files = job["files"]
    opened = {mounted: (os.open(mounted, os.O_RDONLY), os.open(reference, os.O_RDONLY)) for mounted, reference in files}
    done, longest = 0, 0.0
    while not stop.is_set():
        mounted, _ = files[(number + done) % len(files)] if len(files) < job["readers"] else rng.choice(files)
        descriptor, reference = opened[mounted]
        size = os.fstat(reference).st_size
        offset = rng.randrange(size)
        length = rng.randint(1, job["read_bytes"])
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # else the kernel answers by itself before long
        began = time.monotonic()
        try:
            data = os.pread(descriptor, length, offset)
        except OSError as exc:
            os.write(problems, f"{mounted} at {offset}: {exc.strerror}\n".encode())
        else:
            if data != os.pread(reference, length, offset):
                os.write(problems, f"{mounted}: wrong bytes in {len(data)} at {offset}\n".encode())
        longest = max(longest, time.monotonic() - began)
        done += 1
        _COUNTERS.pack_into(counters, number * _COUNTERS.size, done, longest)
        stop.wait(job["pause_seconds"])


def main(path: Path) -> None:
    job = json.loads(path.read_text())
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    problems = os.open(path.with_name("problems"), os.O_WRONLY | os.O_APPEND)
    with path.with_name("counters").open("r+b") as file:
        counters = mmap.mmap(file.fileno(), 0)
    threads = [
        threading.Thread(target=_read_on, args=(number, job, counters, problems, stop), daemon=True)
        for number in range(job["readers"])
    ]
    for thread in threads:
        thread.start()
    stop.wait()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
