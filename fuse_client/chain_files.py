"""What a node keeps of a chain: bootstrap, chunk map, and a record that says so.

Beneath ``<root>/chains/<64 hex of the chainID>/``:

    bootstrap.erofs   the tree, mounted by the kernel
    chunks.map        which chunk stands where on the device
    chain.json        ``Record``; written last, so its presence says that the other two are complete
    rootfs/           where the tree is mounted

A file appears under its name only when it is whole, verified against the digest that the proxy promised, and on
the disk. A directory without a record, or with one of another version, is rubbish.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import mmap
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import zstandard

from fastpull.cache.digest import Digest
from fastpull.cache.errors import MalformedDigestError
from fastpull.cache.wire import ChainState
from fastpull.fuse_client.errors import ChainDamagedError
from fastpull.image.chunk_map import ChunkMap
from fastpull.image.errors import IndexFormatError

BOOTSTRAP = "bootstrap.erofs"
CHUNK_MAP = "chunks.map"
RECORD = "chain.json"
ROOTFS = "rootfs"

VERSION = 1
_COPY_BYTES = 1 << 20


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """``chain.json``. ``users`` are those who want the chain mounted; empty = nobody does (any more)."""

    version: int = VERSION
    state: ChainState
    users: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class OpenChain:
    """A chain whose files are here and verified. The map is a memory map of its file."""

    record: Record
    map: ChunkMap


class ChainFiles:
    """Reads and writes the directories of all chains. Blocking: call it from threads, one chain at a time."""

    def __init__(self, root: Path) -> None:
        self._chains = root / "chains"

    def directory(self, chain: Digest) -> Path:
        return self._chains / chain.hex

    def bootstrap(self, chain: Digest) -> Path:
        return self.directory(chain) / BOOTSTRAP

    def rootfs(self, chain: Digest) -> Path:
        return self.directory(chain) / ROOTFS

    def record(self, chain: Digest) -> Record | None:
        """The chain's record; None = the chain is not here."""
        try:
            record = msgspec.json.decode((self.directory(chain) / RECORD).read_bytes(), type=Record)
        except (OSError, msgspec.DecodeError):
            return None
        return record if record.version == VERSION and record.state.chain_id == str(chain) else None

    def chains(self) -> list[Digest]:
        """All chains that have a directory, with or without a record."""
        found: list[Digest] = []
        with contextlib.suppress(FileNotFoundError):
            for entry in sorted(self._chains.iterdir()):
                with contextlib.suppress(MalformedDigestError):
                    found.append(Digest.parse(f"sha256:{entry.name}"))
        return found

    def open(self, chain: Digest) -> OpenChain:
        """Verify both files against their digests and open the map. Raise ``ChainDamagedError``."""
        record = self.record(chain)
        if record is None:
            raise ChainDamagedError(chain, "its files on this node are incomplete")
        state = record.state
        try:
            _check(chain, self.bootstrap(chain), state.bootstrap_digest)
            path = self.directory(chain) / CHUNK_MAP
            _check(chain, path, state.chunk_map_digest)
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return OpenChain(record, ChunkMap.open(mapped))
        except (OSError, IndexFormatError) as exc:
            raise ChainDamagedError(chain, f"its files on this node can not be used: {exc}") from exc

    def store(self, chain: Digest, name: str, encoding: str, raw: bytes, digest: str, size: int) -> None:
        """Unpack, verify and keep one artifact as the proxy sent it. Raise ``ChainDamagedError``, keeping nothing."""
        directory = self.directory(chain)
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / f".{name}.partial"
        try:
            with partial.open("wb") as file:
                for block in unpack(chain, name, encoding, raw, digest, size):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
            partial.rename(directory / name)
        finally:
            partial.unlink(missing_ok=True)

    def write_record(self, chain: Digest, record: Record) -> None:
        """Replace the record, atomically; it is on the disk when this returns."""
        directory = self.directory(chain)
        (directory / ROOTFS).mkdir(exist_ok=True)
        partial = directory / f".{RECORD}.partial"
        with partial.open("wb") as file:
            file.write(msgspec.json.encode(record))
            file.flush()
            os.fsync(file.fileno())
        partial.rename(directory / RECORD)
        _sync_directory(directory)

    def remove(self, chain: Digest) -> None:
        """Remove the chain's files. ``rootfs`` must be unmounted: its directory is removed only empty."""
        directory = self.directory(chain)
        (directory / RECORD).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            (directory / ROOTFS).rmdir()
        shutil.rmtree(directory, ignore_errors=True)


def unpack(chain: Digest, name: str, encoding: str, raw: bytes, digest: str, size: int) -> Iterator[bytes]:
    """The content of an artifact as the proxy sent it, piece by piece. Use none before all have come.

    Raise ``ChainDamagedError`` for more than ``size`` bytes, or another digest.
    """
    hasher = hashlib.sha256()
    written = 0
    try:
        for block in _blocks(raw, encoding):
            written += len(block)
            if written > size:
                raise ChainDamagedError(chain, f"its {name} has more than the {size} bytes that were promised")
            hasher.update(block)
            yield block
    except zstandard.ZstdError as exc:
        raise ChainDamagedError(chain, f"its {name} can not be unpacked: {exc}") from exc
    if f"sha256:{hasher.hexdigest()}" != digest:
        raise ChainDamagedError(chain, f"its {name} does not have the digest that was promised")


def _blocks(raw: bytes, encoding: str) -> Iterator[bytes]:
    """The content of an answer, a megabyte at a time, so that a bomb is found before it is large."""
    if encoding == "zstd":
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(raw), read_across_frames=True) as reader:
            while block := reader.read(_COPY_BYTES):
                yield block
    elif encoding == "identity":
        yield raw
    else:
        raise zstandard.ZstdError(f"unknown content encoding {encoding!r}")


def _check(chain: Digest, path: Path, digest: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if f"sha256:{found}" != digest:
        raise ChainDamagedError(chain, f"{path.name} on this node is damaged")


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
