"""Several processes on one chunk store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conformance.audit import audit, unaccounted_blocks
from conformance.stores import content, raw

from fastpull.cache.digest import ChunkId
from fastpull.cache.lmdb_store import LmdbChunkStore

MiB = 1 << 20
TESTS = str(Path(__file__).parents[2])

PRELUDE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conformance.stores import content, raw
from fastpull.cache.codec import decode
from fastpull.cache.lmdb_store import LmdbChunkStore
store = LmdbChunkStore.open(Path(sys.argv[1]), quota_bytes=64 << 20)

def say(word):
    print(word, flush=True)

def wait():
    sys.stdin.readline()

"""


@contextmanager
def process(path: Path, program: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process with the store at ``path`` open; it has ended well when the block ends."""
    command = [sys.executable, "-P", "-c", PRELUDE + program, str(path), TESTS]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield started
        assert started.stdin is not None
        started.stdin.close()
        assert started.wait(120) == 0
    finally:
        if started.poll() is None:
            started.kill()
            started.wait()
        assert started.stdout is not None
        started.stdout.close()


def heard(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


def tell(started: subprocess.Popen[str]) -> None:
    assert started.stdin is not None
    started.stdin.write("\n")
    started.stdin.flush()


def nothing(_chunk: ChunkId) -> bool:
    return False


WRITE = """
first = int({first})
for number in range(first, first + 60, 5):
    store.put_many([raw(part, 9000) for part in range(number, number + 5)])
    store.drop([raw(1000 + first, 9000)[0]])
store.sync()
store.close()
"""


def test_processes_write_one_store(tmp_path: Path) -> None:
    """They overlap by half: each chunk is there once, and every sum is right."""
    with (
        process(tmp_path, WRITE.format(first=0)),
        process(tmp_path, WRITE.format(first=30)),
        process(tmp_path, WRITE.format(first=60)),
    ):
        store = LmdbChunkStore.open(tmp_path, quota_bytes=64 * MiB)
        for number in range(0, 120, 10):
            store.put_many([raw(number, 9000)])

    assert store.stats().chunks == 120
    for number in range(120):
        assert store.get(raw(number, 9000)[0]).data == content(number, 9000)
    store.flush()
    store.close()
    assert audit(tmp_path) == []
    assert unaccounted_blocks(tmp_path) < 30


READ = """
with store.view() as view:
    found = [view.get(raw(number, 50_000)[0]) for number in range(40)]
    say("looking")
    wait()
    for number, chunk in enumerate(found):
        assert bytes(chunk.data) == content(number, 50_000), number
    found = chunk = None
say("looked")
wait()
assert store.has([raw(1, 50_000)[0]]) == [False]
with store.view() as view:
    assert bytes(view.get(raw(100, 50_000)[0]).data) == content(100, 50_000)
store.close()
"""


def test_a_view_of_another_process_keeps_what_is_evicted(tmp_path: Path) -> None:
    """Its buffers stay right until it ends; then the space returns."""
    store = LmdbChunkStore.open(tmp_path, quota_bytes=64 * MiB)
    store.put_many([raw(number, 50_000) for number in range(40)])
    with process(tmp_path, READ) as reader:
        assert heard(reader) == "looking"
        store.evict(0, in_use=nothing)
        for number in range(100, 110):
            store.put_many([raw(number, 50_000)])
        store.flush()
        tell(reader)
        assert heard(reader) == "looked"
        store.flush()
        assert sum(file.stat().st_blocks for file in tmp_path.glob("*.chunks")) * 512 < 15 * 50_000
        tell(reader)
    store.close()
    assert audit(tmp_path) == []


DIE_LOOKING = """
view = store.view().__enter__()
view.get(raw(1, 50_000)[0])
say("looking")
wait()
"""


def test_a_reader_that_died_keeps_nothing(tmp_path: Path) -> None:
    """Its place in the table of readers is cleared, so space and index pages are used again."""
    store = LmdbChunkStore.open(tmp_path, quota_bytes=64 * MiB)
    store.put_many([raw(number, 50_000) for number in range(40)])
    with process(tmp_path, DIE_LOOKING) as reader:
        assert heard(reader) == "looking"
        reader.kill()
        reader.wait()
        reader.returncode = 0
    store.evict(0, in_use=nothing)
    store.flush()

    assert sum(file.stat().st_blocks for file in tmp_path.glob("*.chunks")) * 512 < 50_000
    store.close()


EVICT = """
assert store.evict(0, in_use=lambda chunk: False) > 0
store.flush()
store.close()
"""


def test_segments_that_another_process_removed_are_let_go(tmp_path: Path) -> None:
    """Their files do not stay open."""
    segments = 6
    store = LmdbChunkStore.open(tmp_path, quota_bytes=128 * MiB)
    for number in range(segments * 17):
        store.put_many([raw(number, 1 * MiB)])
    with store.view() as view:
        assert view.get(raw(0, 1 * MiB)[0]) is not None
        assert view.get(raw(30, 1 * MiB)[0]) is not None
    with process(tmp_path, EVICT):
        pass
    assert "(deleted)" in open_segments(tmp_path)
    store.flush()

    assert "(deleted)" not in open_segments(tmp_path)
    store.put_many([raw(1)])
    assert store.get(raw(1)[0]) == raw(1)[1]
    store.close()


def open_segments(path: Path) -> str:
    targets = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
    return "\n".join(target for target in targets if f"{path}/" in target and ".chunks" in target)


CHILD = """
import os
store.put_many([raw(1)])
if (child := os.fork()) == 0:
    again = LmdbChunkStore.open(Path(sys.argv[1] + "-other"), quota_bytes=64 << 20)
    again.put_many([raw(2)])
    again.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
store.put_many([raw(3)])
assert all(store.has([raw(1)[0], raw(3)[0]]))
store.close()
"""


def test_a_forked_child_with_a_store_of_its_own_disturbs_nobody(tmp_path: Path) -> None:
    """It leaves the parent's store alone, as the rules of LMDB demand."""
    with process(tmp_path / "store", CHILD):
        pass
    assert audit(tmp_path / "store") == []
    assert audit(tmp_path / "store-other") == []
