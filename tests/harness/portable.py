"""One process of the portable driver, without a daemon: a chain whose content is all in a store."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from fastpull.cache.digest import ChunkId
from fastpull.cache.lmdb_store import LmdbChunkStore
from fastpull.cache.store import Encoding, StoredChunk
from fastpull.fuse_client.drivers.portable import CHUNK_MAP, PortableDriver
from fastpull.fuse_client.portable.children import Children
from fastpull.image.chain import BuiltChain

CHAIN = "ab" * 32


def children_below(directory: Path) -> list[int]:
    """The processes that serve the mounts of the node whose files are in ``directory``."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                words = (process / "cmdline").read_bytes()
            except OSError:
                continue
            if b"portable.child" in words and os.fsencode(directory) in words:
                found.append(int(process.name))
    return found


@contextlib.contextmanager
def portable_mount(built: BuiltChain, chunks: Mapping[ChunkId, bytes], folder: Path) -> Iterator[Path]:
    """Mount ``built`` in ``folder``; unmounted, with its process gone, when the block ends."""
    bootstrap = folder / "bootstrap.erofs"
    bootstrap.write_bytes(built.bootstrap)
    (folder / CHUNK_MAP).write_bytes(built.chunk_map)
    store = LmdbChunkStore.open(folder / "store", quota_bytes=1 << 30)
    store.put_many([(chunk, StoredChunk(Encoding.RAW, len(data), data)) for chunk, data in chunks.items()])
    store.close()
    children = Children(folder)
    driver = PortableDriver(
        children,
        folder,
        store=folder / "store",
        socket=folder / "nobody.sock",
        wait_seconds=1.0,
        verify_always=False,
    )
    target = folder / "portable"
    target.mkdir()
    asyncio.run(driver.mount(bootstrap, Path(CHAIN), target))
    try:
        yield target
    finally:
        asyncio.run(driver.unmount(target))
        assert driver.mounted(folder) == []
        assert children.living() == []
