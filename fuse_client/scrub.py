"""What a scrub of a node checks, and how each damaged thing comes back.

| kind | checked against | damaged ones |
|---|---|---|
| chunks | their ids | fetched again when somebody reads them |
| bootstraps and chunk maps | their digests | fetched again at once, and mounted from anew |
| traces | JSON of ``Trace`` | removed; a later start teaches the same |
| starts | MessagePack of ``StartRecord`` | removed |
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from fastpull.cache.digest import ChunkId, Digest
from fastpull.cache.scrub import Check, Damage, Step
from fastpull.cache.scrub_chunks import ChunksCheck
from fastpull.cache.scrub_files import sha256_in_steps
from fastpull.cache.store import ChunkStore
from fastpull.cache.wire import Trace
from fastpull.fuse_client.chain_files import CHUNK_MAP, ChainFiles
from fastpull.fuse_client.chains import Chains
from fastpull.fuse_client.start_record import VERSION as START_VERSION
from fastpull.fuse_client.start_record import StartRecord


def checks_of_node(
    root: Path, store: ChunkStore, drop: Callable[[Sequence[ChunkId]], Awaitable[int]], chains: Chains
) -> list[Check]:
    """All checks, what readers need first."""
    return [
        ChainFilesCheck(ChainFiles(root), chains.repair),
        ChunksCheck(store, drop),
        SpoolCheck("traces", root / "traces", "[0-9]*.json", look_at_trace),
        SpoolCheck("starts", root / "starts", "[0-9a-f]*.start", look_at_start),
    ]


class ChainFilesCheck:
    """Both files of each chain. One that is damaged is replaced, and a chain that nobody wants is left to the start."""

    kind = "bootstraps and chunk maps"

    def __init__(self, files: ChainFiles, repair: Callable[[Digest], Awaitable[None]]) -> None:
        self._files = files
        self._repair = repair

    def total(self) -> int:
        return 2 * len(self._files.chains())

    def steps(self) -> Iterator[Step]:
        for chain in self._files.chains():
            record = self._files.record(chain)
            if record is None:
                continue  # being fetched, or removed
            bootstrap, chunk_map = self._files.bootstrap(chain), self._files.directory(chain) / CHUNK_MAP
            for path, digest in (
                (bootstrap, record.state.bootstrap_digest),
                (chunk_map, record.state.chunk_map_digest),
            ):
                damage = Damage(str(chain), f"{path.name} of chain {chain} is damaged")
                try:
                    found = yield from sha256_in_steps(path)
                except OSError as exc:
                    if self._files.record(chain) is None:
                        break  # unmounted meanwhile
                    damage = Damage(str(chain), f"{path.name} of chain {chain} can not be read: {exc}")
                    found = ""
                if f"sha256:{found}" == digest:
                    yield Step(checked=1)
                else:
                    yield Step(checked=1, damaged=(damage,))

    async def drop(self, damage: Damage) -> bool:
        await self._repair(Digest.parse(damage.key))
        return True


class SpoolCheck:
    """Small files that are one message each. ``look`` returns why one is of another version, and raises if damaged."""

    def __init__(self, kind: str, directory: Path, pattern: str, look: Callable[[bytes], str]) -> None:
        self.kind = kind
        self._directory = directory
        self._pattern = pattern
        self._look = look

    def total(self) -> int:
        return sum(1 for _ in self._directory.glob(self._pattern))

    def steps(self) -> Iterator[Step]:
        for path in self._directory.glob(self._pattern):
            with contextlib.suppress(FileNotFoundError):  # sent meanwhile
                try:
                    data = path.read_bytes()
                    foreign = self._look(data)
                except (msgspec.DecodeError, ValueError) as exc:
                    damage = Damage(path.name, f"{path.name}: {exc}")
                    yield Step(path.stat().st_size, 1, damaged=(damage,))
                else:
                    yield Step(len(data), 1, unchecked=(f"{path.name} {foreign}: left alone",) if foreign else ())

    async def drop(self, damage: Damage) -> bool:
        (self._directory / damage.key).unlink(missing_ok=True)
        return True


class _Versioned(msgspec.Struct):
    version: int


def look_at_trace(data: bytes) -> str:
    """Raise ``DecodeError``. The wire has no versions: fields are only added."""
    msgspec.json.decode(data, type=Trace)
    return ""


def look_at_start(data: bytes) -> str:
    """Raise ``DecodeError`` or ``ValueError``."""
    version = msgspec.msgpack.decode(data, type=_Versioned).version
    if version > START_VERSION:
        return f"is of version {version}"
    msgspec.msgpack.decode(data, type=StartRecord).touches()
    return ""
