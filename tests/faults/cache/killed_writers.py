"""Kills writers of a chunk store at random moments and looks at what they leave. Run by ``test_killed_writers.py``.

Processes are forked here, by a process that has never opened a store, because a fresh interpreter for each of the
many kills would take minutes: each round forks a writer, kills it, then forks an auditor.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from conformance.audit import audit, unaccounted_blocks
from conformance.stores import packed, raw

from fastpull.cache.chunk_index import ChunkIndex
from fastpull.cache.lmdb_store import LmdbChunkStore
from fastpull.cache.power_loss import UnflushedMarker
from fastpull.cache.segments import Segments

QUOTA = 3 << 20
SEGMENT = 1 << 18  # small, so that sealing, new files and moving are hit often
LEFT_BEHIND = 64  # blocks; the ends of segments, and what the file system needs for itself


def open_store(path: Path, marker: UnflushedMarker | None) -> LmdbChunkStore:
    path.mkdir(exist_ok=True)
    index = ChunkIndex.open(path / "index", map_bytes=1 << 30, marker=marker)
    return LmdbChunkStore(path, index, Segments(path, SEGMENT), QUOTA)


def write_for_ever(path: Path, seed: int, ready: int) -> None:
    chosen = random.Random(seed)
    store = open_store(path, None if seed % 2 else UnflushedMarker(path))
    now = time.time()
    store.clock = lambda: now
    os.write(ready, b"x")
    while True:
        now += 100
        numbers = [chosen.randrange(800) for _ in range(chosen.randrange(1, 25))]
        store.put_many(
            packed(number, 300 + number * 90) if number % 2 else raw(number, 300 + number * 90) for number in numbers
        )
        store.touch([raw(number, 300)[0] for number in range(0, 800, 50)])
        action = chosen.randrange(6)
        if action == 0:
            store.drop([raw(number, 300 + number * 90)[0] for number in numbers[:5]])
        elif action == 1:
            store.evict(QUOTA * 3 // 4, in_use=lambda chunk: chunk[0] < 40)
        elif action == 2:
            store.flush()
        elif action == 3:
            store.sync()


def check(path: Path, report: int) -> None:
    """Open and close the store as the next process would, then say what is wrong with it."""
    store = open_store(path, None)
    names = list(store.ids())
    visible = sum(store.has(names))
    store.put_many([raw(0, 300)])
    store.flush()
    store.close()
    problems = audit(path)
    if (left := unaccounted_blocks(path)) > LEFT_BEHIND:
        problems.append(f"{left} blocks belong to no chunk")
    os.write(report, json.dumps([visible, problems]).encode())


def forked(work: Callable[..., None], *arguments: object) -> int:
    process = os.fork()
    if process:
        return process
    try:
        work(*arguments)
        os._exit(0)
    except BaseException as exc:
        sys.stderr.write(f"{work.__name__}{arguments}: {exc!r}\n")
        sys.stderr.flush()
        os._exit(1)


def round_of(path: Path, seed: int, writers: int) -> tuple[int, list[str]]:
    chosen = random.Random(seed)
    ready_read, ready = os.pipe()
    processes = [forked(write_for_ever, path, seed * 10 + number, ready) for number in range(writers)]
    for _ in processes:
        os.read(ready_read, 1)
    for process in processes:
        time.sleep(chosen.expovariate(25))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    read, report = os.pipe()
    auditor = forked(check, path, report)
    os.close(report)
    with os.fdopen(read, "rb") as answer:
        data = answer.read()
    os.waitpid(auditor, 0)
    os.close(ready_read)
    os.close(ready)
    visible, problems = json.loads(data or b'[0, ["the store could not be opened"]]')
    return visible, problems


def main(path: Path, rounds: int, writers: int) -> None:
    chunks = 0
    for seed in range(rounds):
        visible, problems = round_of(path, seed, writers)
        chunks += visible
        if problems:
            sys.exit(f"after kill {seed}: " + "; ".join(problems[:5]))
    sys.stdout.write(json.dumps({"rounds": rounds, "chunks": chunks}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
