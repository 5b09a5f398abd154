"""Reads a chunk store on disk without its own code for that, and says what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import lmdb

from fastpull.cache import records
from fastpull.cache.codec import decode
from fastpull.cache.digest import ChunkId
from fastpull.cache.errors import CacheError
from fastpull.cache.store import StoredChunk

BLOCK = 4096


def audit(path: Path) -> list[str]:
    """Every contradiction in the closed store at ``path``: content, accounts, order of use, places, segments."""
    environment = lmdb.open(str(path / "index"), max_dbs=10, readonly=True, lock=False)
    names = ("meta", "index", "uses", "places", "segments", "freed")
    try:
        handles = {name: environment.open_db(name.encode(), create=False) for name in names}
        with environment.begin() as transaction:
            tables = {name: dict(transaction.cursor(handle)) for name, handle in handles.items()}
    finally:
        environment.close()
    return list(_contradictions(path, tables))


def _contradictions(path: Path, tables: dict[str, dict[bytes, bytes]]) -> Iterator[str]:
    entries = {}
    for name, data in tables["index"].items():
        entry = records.unpack_entry(ChunkId(name), data)
        assert entry is not None
        entries[ChunkId(name)] = entry
    accounts = records.unpack_accounts(tables["meta"].get(b"accounts"))
    if accounts.chunks != len(entries):
        yield f"{accounts.chunks} chunks on the books, {len(entries)} there"
    if accounts.live_bytes != (live := sum(records.footprint(entry.length) for entry in entries.values())):
        yield f"{accounts.live_bytes} live bytes on the books, {live} there"
    if {records.TICK.pack(entry.tick): name for name, entry in entries.items()} != tables["uses"]:
        yield "the order of use is of other chunks"
    places = {
        records.PLACE_KEY.pack(entry.segment, entry.offset): records.PLACE.pack(entry.length, name)
        for name, entry in entries.items()
    }
    if places != tables["places"]:
        yield "the places are of other chunks"
    segments = {
        records.SEGMENT_KEY.unpack(key)[0]: records.unpack_segment(data) for key, data in tables["segments"].items()
    }
    for name, entry in entries.items():
        segment = segments.get(entry.segment)
        if segment is None or entry.offset + entry.length > segment.end:
            yield f"{name.hex()} lies outside of the committed part of segment {entry.segment}"
        try:
            with (path / f"{entry.segment}.chunks").open("rb") as file:
                data = os.pread(file.fileno(), entry.length, entry.offset)
            decode(StoredChunk(entry.encoding, entry.size, data), name)
        except (CacheError, OSError) as exc:
            yield str(exc)
    yield from _in_segments(segments, list(entries.values()))


def _in_segments(segments: dict[int, records.Segment], entries: list[records.Entry]) -> Iterator[str]:
    for number, segment in segments.items():
        live = sum(entry.length for entry in entries if entry.segment == number)
        if segment.live_bytes != live:
            yield f"segment {number} has {segment.live_bytes} live bytes on the books, {live} there"
    at = (0, 0)
    for entry in sorted(entries, key=lambda entry: (entry.segment, entry.offset)):
        if (entry.segment, entry.offset) < at:
            yield f"two chunks overlap at {entry.offset} of segment {entry.segment}"
        at = (entry.segment, entry.offset + entry.length)


def unaccounted_blocks(path: Path) -> int:
    """Blocks that segment files occupy in excess of what their live chunks need."""
    environment = lmdb.open(str(path / "index"), max_dbs=10, readonly=True, lock=False)
    try:
        handle = environment.open_db(b"index", create=False)
        needed: set[tuple[int, int]] = set()
        with environment.begin() as transaction:
            for name, data in transaction.cursor(handle):
                entry = records.unpack_entry(ChunkId(name), data)
                assert entry is not None
                first, last = entry.offset // BLOCK, (entry.offset + max(entry.length, 1) - 1) // BLOCK
                needed.update((entry.segment, block) for block in range(first, last + 1))
    finally:
        environment.close()
    allocated = sum(file.stat().st_blocks * 512 for file in path.glob("*.chunks")) // BLOCK
    return allocated - len(needed)
