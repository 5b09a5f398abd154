"""A follower in this process, in front of a leader that a test plays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path

import aiohttp
from aiohttp import web

from fastpull.cache.digest import ChunkId
from fastpull.cache.lmdb_store import LmdbChunkStore
from fastpull.cache.store import StoredChunk
from fastpull.proxy.workers import door
from fastpull.proxy.workers.blobs import FollowerBlobs
from fastpull.proxy.workers.chunks import FollowerChunks
from fastpull.proxy.workers.follower import FollowerRunner, build_follower
from fastpull.proxy.workers.forwarding import Leader
from fastpull.proxy.workers.shelf import LearnedShelf
from fastpull.proxy.workers.tally import Tally


@dataclass
class Follower:
    port: int
    client: aiohttp.ClientSession
    shelf: LearnedShelf
    tally: Tally
    blobs: Path
    leader: web.AppRunner
    gone: asyncio.Event
    told: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def follower_of(
    tmp_path: Path, leader_app: web.Application, *, chunks: Mapping[ChunkId, StoredChunk] | None = None
) -> AsyncIterator[Follower]:
    """``chunks`` are in the store; a process opens LMDB's files once, so it takes no more."""
    folder = door.prepare(tmp_path)
    with closing(LmdbChunkStore.open(tmp_path / "chunks", quota_bytes=64 << 20)) as store:
        store.put_many((chunks or {}).items())
    (tmp_path / "blobs").mkdir()
    tally, gone = Tally(1), asyncio.Event()
    shelf = LearnedShelf(str(tmp_path / "blobs"), "docker.io", ("docker.io", "r.test"), tally)
    batches = FollowerChunks(tmp_path / "chunks", tally)
    leader_runner = web.AppRunner(leader_app, shutdown_timeout=0.1, access_log=None, handler_cancellation=True)
    await leader_runner.setup()
    with door.short_path(folder) as socket:
        await web.UnixSite(leader_runner, socket).start()
        async with Leader(socket, gone.set) as leader:

            async def tell() -> None:
                follower.told += 1

            runner = FollowerRunner(
                build_follower(FollowerBlobs(shelf), batches, leader, tell),
                shelf,
                access_log=None,
                shutdown_timeout=0.1,
                handler_cancellation=True,
                auto_decompress=False,
                max_line_size=65536,
                max_field_size=65536,
            )
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            async with aiohttp.ClientSession(auto_decompress=False) as client:
                port = runner.addresses[0][1]
                follower = Follower(port, client, shelf, tally, tmp_path / "blobs", leader_runner, gone)
                try:
                    yield follower
                finally:
                    await runner.cleanup()
                    await leader_runner.cleanup()
                    batches.close()
