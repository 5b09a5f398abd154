"""An ingest on a real database and in-memory store, with fakes for the network and the workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing, closing
from pathlib import Path

import pytest
from fakes.ingest_assembly import Parts, assemble
from fakes.ingest_parts import FakeMirror

from fastpull.cache.memory_store import MemoryChunkStore
from fastpull.cache.tables import Database
from fastpull.cache.tasks import Tasks
from fastpull.cache.writer import Writer
from fastpull.proxy.ingest.state import TABLES


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    (tmp_path / "blobs").mkdir()
    with closing(Database.open(tmp_path / "db", tables=TABLES, map_bytes=64 << 20)) as database:
        async with Writer() as writer, aclosing(Tasks()) as tasks:
            store = MemoryChunkStore(quota_bytes=64 << 20)
            yield assemble(FakeMirror(tmp_path / "blobs"), database, store, writer, tasks)
