"""Typed, durable tables for metadata: manifests, layer indexes, plans, snapshots.

One LMDB environment, one database of it per table, keys in UTF-8. A value is:

    offset  size  type   field
    0       1     u8     version of the value, 1
    1       8     -      first bytes of BLAKE3 over table, zero, key, zero and payload
    9       n     bytes  payload: MessagePack of the table's struct, or the bytes themselves

The checksum covers table and key, so a value that turns up under a wrong key is damage too. ``meta`` holds the
caller's version of the whole under ``version`` (u32, little-endian).

Committed means on disk: a commit survives a killed process and a power loss. Any number of processes may open one
database.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, Self, TypeVar, cast

import lmdb
import msgspec
from blake3 import blake3

from fastpull.cache.environment import open_environment, translated
from fastpull.cache.errors import CacheError, RecordDamagedError, RecordForeignError, StoreVersionError

T = TypeVar("T")

MAX_KEY_BYTES = 511
_VALUE_VERSION = 1
_CHECKSUM_BYTES = 8
_HEADER_BYTES = 1 + _CHECKSUM_BYTES
_VERSION = struct.Struct("<I")
_META = "meta"
_ITEMS_PER_LOOK = 128


class _Current(threading.local):
    """The transaction that this thread has open."""

    transaction: lmdb.Transaction[bytes] | None = None
    is_writing = False


class Database:
    """Tables that change together."""

    def __init__(self, environment: lmdb.Environment, path: Path, tables: Iterable[str], version: int) -> None:
        self.path = path
        self._environment = environment
        self._current = _Current()
        with self.write():
            self._databases = {
                name: environment.open_db(name.encode(), self._current.transaction) for name in (_META, *tables)
            }
            self._check_version(version)

    @classmethod
    def open(cls, path: Path, *, tables: Iterable[str], version: int = 1, map_bytes: int = 64 << 30) -> Self:
        """Open or create the database in the directory ``path``.

        ``map_bytes`` is address space and the limit of the file, not memory. Raise ``StoreVersionError`` when the
        files have another ``version``, ``CacheError`` when they can not be used.
        """
        names = list(tables)
        if _META in names:
            raise ValueError(f"{_META!r} is taken")
        environment = open_environment(path, map_bytes=map_bytes, databases=len(names) + 1, metasync=True)
        try:
            return cls(environment, path, names, version)
        except BaseException:
            environment.close()
            raise

    def table(self, name: str, kind: type[T]) -> Table[T]:
        """The table ``name``, whose values are of ``kind``: a msgspec type, or ``bytes``."""
        return Table(self, name, self._databases[name], kind)

    @contextmanager
    def write(self) -> Iterator[None]:
        """All that this thread does to the tables inside the block happens together, durably, or not at all.

        Blocks other writers, also of other processes: no waiting inside. Blocks do not nest.
        Raise ``StoreFullError`` when it does not fit.
        """
        if self._current.transaction is not None:
            raise RuntimeError("this thread has a read or a write of this database open already")
        with translated(self.path), self._environment.begin(write=True) as self._current.transaction:
            self._current.is_writing = True
            try:
                yield
            finally:
                self._current.transaction = None
                self._current.is_writing = False

    @contextmanager
    def read(self) -> Iterator[None]:
        """All that this thread reads inside the block is of one moment. Inside ``write``: of that transaction."""
        if self._current.transaction is not None:
            yield
            return
        with translated(self.path), self._environment.begin() as self._current.transaction:
            try:
                yield
            finally:
                self._current.transaction = None

    def close(self) -> None:
        self._environment.close()

    @contextmanager
    def _reading(self) -> Iterator[lmdb.Transaction[bytes]]:
        with self.read():
            assert self._current.transaction is not None
            yield self._current.transaction

    @contextmanager
    def _writing(self) -> Iterator[lmdb.Transaction[bytes]]:
        if self._current.is_writing and self._current.transaction is not None:
            yield self._current.transaction
        else:
            with self.write():
                assert self._current.transaction is not None
                yield self._current.transaction

    def _check_version(self, version: int) -> None:
        transaction, meta = self._current.transaction, self._databases[_META]
        assert transaction is not None
        data = transaction.get(b"version", db=meta)
        if data is None:
            transaction.put(b"version", _VERSION.pack(version), db=meta)
            return
        (found,) = _VERSION.unpack(data) if len(data) == _VERSION.size else (-1,)
        if found != version:
            age = "a newer" if found > version else "an older"
            raise StoreVersionError(
                f"{self.path} was written by {age} version (format {found}, this one reads {version}): "
                "run that version, or remove the directory"
            )


class Table(Generic[T]):
    """Values of one type by text key. Each call is a transaction of its own, or part of ``Database.write``."""

    def __init__(self, database: Database, name: str, handle: lmdb._Database, kind: type[T]) -> None:
        self.name = name
        self._database = database
        self._handle = handle
        self._is_bytes = kind is bytes
        self._encode: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
        self._decode: Callable[[bytes], Any] = msgspec.msgpack.Decoder(kind).decode

    def get(self, key: str) -> T | None:
        """Raise ``RecordDamagedError`` for a value that is not what was put."""
        with self._database._reading() as transaction:
            data = transaction.get(_encode_key(key), db=self._handle)
        return None if data is None else self._unpack(key, data)

    def has(self, key: str) -> bool:
        """Whether there is a value, damaged or not."""
        with self._database._reading() as transaction:
            return transaction.get(_encode_key(key), db=self._handle) is not None

    def put(self, key: str, value: T) -> None:
        payload = cast("bytes", value) if self._is_bytes else self._encode(value)
        data = b"".join((bytes((_VALUE_VERSION,)), self._checksum(key, payload), payload))
        with self._database._writing() as transaction:
            transaction.put(_encode_key(key), data, db=self._handle)

    def delete(self, key: str) -> bool:
        """Return whether the key was there."""
        with self._database._writing() as transaction:
            return transaction.delete(_encode_key(key), db=self._handle)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """The keys that start with ``prefix``, in the order of their UTF-8 bytes.

        Looks again for every hundred or so, so that a slow caller holds no transaction: what others
        change meanwhile may or may not show.
        """
        for key, _ in self._raw(prefix, values=False):
            yield key

    def items(
        self, prefix: str = "", *, on_damage: Callable[[RecordDamagedError], None] | None = None
    ) -> Iterator[tuple[str, T]]:
        """Keys and values, as ``keys``. Damaged values are given to ``on_damage`` and left out, or raised."""
        for key, data in self._raw(prefix, values=True):
            try:
                value = self._unpack(key, data)
            except RecordDamagedError as exc:
                if on_damage is None:
                    raise
                on_damage(exc)
            else:
                yield key, value

    def count(self) -> int:
        with self._database._reading() as transaction:
            return transaction.stat(self._handle)["entries"]

    def _raw(self, prefix: str, *, values: bool) -> Iterator[tuple[str, bytes]]:
        start = prefix_bytes = prefix.encode()
        while True:
            with self._database._reading() as transaction:
                page: list[tuple[bytes, bytes]] = []
                cursor = transaction.cursor(self._handle)
                more = cursor.set_range(start)
                while more and len(page) < _ITEMS_PER_LOOK and cursor.key().startswith(prefix_bytes):
                    page.append((cursor.key(), cursor.value() if values else b""))
                    more = cursor.next()
            for key, data in page:
                yield key.decode(errors="replace"), data
            if len(page) < _ITEMS_PER_LOOK:
                return
            start = page[-1][0] + b"\0"

    def _checksum(self, key: str, payload: bytes) -> bytes:
        seen = blake3(self.name.encode())
        seen.update(b"\0" + key.encode() + b"\0")
        seen.update(payload)
        return seen.digest(length=_CHECKSUM_BYTES)

    def _unpack(self, key: str, data: bytes) -> T:
        if not data or data[0] != _VALUE_VERSION:
            kind = RecordForeignError if data and data[0] > _VALUE_VERSION else RecordDamagedError
            raise kind(self.name, key, f"version {data[:1].hex() or 'missing'} of a value is unknown")
        payload = data[_HEADER_BYTES:]
        if data[1:_HEADER_BYTES] != self._checksum(key, payload):
            raise RecordDamagedError(self.name, key, "its checksum does not match")
        if self._is_bytes:
            return cast("T", payload)
        try:
            return cast("T", self._decode(payload))
        except msgspec.MsgspecError as exc:  # the checksum is right: somebody else's idea of the record
            raise RecordForeignError(self.name, key, str(exc)) from exc


def _encode_key(key: str) -> bytes:
    data = key.encode()
    if not 0 < len(data) <= MAX_KEY_BYTES:
        raise CacheError(f"a key of {len(data)} bytes ({key[:60]!r}…); a table takes 1 to {MAX_KEY_BYTES}")
    return data
