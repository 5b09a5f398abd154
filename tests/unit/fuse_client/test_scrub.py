"""What a scrub of a node looks at."""

from __future__ import annotations

from array import array
from pathlib import Path

import msgspec
import pytest

from fastpull.cache.digest import Digest
from fastpull.cache.scrub import Scrub, ScrubKind
from fastpull.cache.wire import ChainState, Trace
from fastpull.fuse_client.chain_files import BOOTSTRAP, CHUNK_MAP, ChainFiles, Record
from fastpull.fuse_client.scrub import ChainFilesCheck, SpoolCheck, look_at_start, look_at_trace
from fastpull.fuse_client.start_record import VERSION, StartRecord

CHAIN = Digest("ab" * 32)


async def scrub(check: ChainFilesCheck | SpoolCheck) -> ScrubKind:
    run = Scrub([check])
    await run.run()
    return run.state().kinds[0]


@pytest.fixture
def files(tmp_path: Path) -> ChainFiles:
    files = ChainFiles(tmp_path)
    for name, data in ((BOOTSTRAP, b"tree" * 1000), (CHUNK_MAP, b"map" * 1000)):
        files.store(CHAIN, name, "identity", data, str(Digest.of(data)), len(data))
    state = ChainState(
        chain_id=str(CHAIN),
        state="ready",
        bootstrap_digest=str(Digest.of(b"tree" * 1000)),
        chunk_map_digest=str(Digest.of(b"map" * 1000)),
    )
    files.write_record(CHAIN, Record(state=state, users=("containerd",)))
    return files


@pytest.mark.parametrize("name", ["", BOOTSTRAP, CHUNK_MAP])
async def test_the_files_of_a_chain_are_checked_against_their_digests(files: ChainFiles, name: str) -> None:
    if name:
        path = files.directory(CHAIN) / name
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    repaired: list[Digest] = []

    async def repair(chain: Digest) -> None:
        repaired.append(chain)

    kind = await scrub(ChainFilesCheck(files, repair))

    assert (kind.checked, kind.damaged, kind.dropped) == (2, bool(name), bool(name))
    assert repaired == ([CHAIN] if name else [])


async def test_a_chain_that_is_being_fetched_is_not_looked_at(files: ChainFiles) -> None:
    (files.directory(CHAIN) / "chain.json").unlink()
    assert (await scrub(ChainFilesCheck(files, lambda _: pytest.fail("repaired")))).checked == 0


def start(version: int) -> bytes:
    return msgspec.msgpack.encode(StartRecord(version=version, chain_id=str(CHAIN), started_at=1.0))


async def test_damaged_traces_and_starts_go_and_those_of_a_newer_version_stay(tmp_path: Path) -> None:
    for name, data in (
        ("1-trace.json", msgspec.json.encode(Trace(chain_id=str(CHAIN)))),
        ("2-trace.json", b'{"chain_id": "sha'),
        ("a.start", start(VERSION)),
        ("b.start", start(VERSION + 1)),
        ("c.start", start(VERSION)[:-5]),
    ):
        (tmp_path / name).write_bytes(data)

    traces = await scrub(SpoolCheck("traces", tmp_path, "[0-9]*.json", look_at_trace))
    starts = await scrub(SpoolCheck("starts", tmp_path, "[a-f]*.start", look_at_start))

    assert (traces.checked, traces.damaged, traces.dropped) == (2, 1, 1)
    assert (starts.checked, starts.damaged, starts.dropped, starts.unchecked) == (3, 1, 1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1-trace.json", "a.start", "b.start"]


def test_columns_of_different_lengths_are_damage() -> None:
    record = StartRecord(chain_id=str(CHAIN), started_at=1.0, indexes=array("I", [1, 2]).tobytes())
    with pytest.raises(ValueError, match=r"columns|length|zip|size"):
        look_at_start(msgspec.msgpack.encode(record))
