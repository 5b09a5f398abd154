"""The blobs on disk: where they are, how much room they take, and which go first.

``blobs/sha256/<xx>/<hex>`` are complete and verified, ``fills/`` holds what is on its way (``partial.py``).
The last use of a blob is its file's mtime.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fastpull.cache.digest import Digest
from fastpull.cache.errors import CacheError, MalformedDigestError
from fastpull.cache.tables import Table
from fastpull.proxy import metrics
from fastpull.proxy.errors import BlobStoreFullError
from fastpull.proxy.mirror.partial import Partial, PartialBusyError, map_path

log = logging.getLogger(__name__)

_TOUCH_SECONDS = 300.0  # a use so soon after the last noted one is not noted
_KEEP_PARTIAL_SECONDS = 86400.0


@dataclass(slots=True)
class _Entry:
    size: int  # on disk: of a partial blob what is allocated
    used: float  # seconds since the epoch
    is_partial: bool


class BlobFiles:
    """Complete blobs and the quota. Methods but those that say so block for metadata calls only.

    A blob is served only if its file is as long as when it was verified (``sizes``): a file that a crash
    or a full disk has cut is removed, not sent.
    """

    def __init__(self, data_dir: Path, quota_bytes: int, sizes: Table[int]) -> None:
        self.fills = data_dir / "fills"
        self._blobs = data_dir / "blobs" / "sha256"
        self._prefix = f"{self._blobs}/"
        self._quota_bytes = quota_bytes
        self._sizes = sizes
        self._known: dict[Digest, int] = {}
        self._entries: dict[Digest, _Entry] = {}
        self._used_bytes = 0
        self._lock = threading.RLock()  # of the accounts: ``make_room`` runs in threads
        self._in_use: Counter[Digest] = Counter()
        self._pins: Counter[Digest] = Counter()

    # -- finding -------------------------------------------------------------------------------------------

    def path(self, digest: Digest) -> Path:
        return self._blobs / digest.hex[:2] / digest.hex

    def open(self, digest: Digest) -> tuple[int, int] | None:
        """A descriptor of the complete blob and its size; ``None`` = it is not here. The caller closes it."""
        try:
            # Text instead of Path: a fifth of the time that a small range costs.
            fd = os.open(f"{self._prefix}{digest.hex[:2]}/{digest.hex}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as exc:
            log.warning("blob %s can not be opened and is fetched again: %s", digest, exc)
            return None
        size = os.fstat(fd).st_size
        if size != (self._known.get(digest) or self._right_size(digest)):
            log.warning("blob %s has %d bytes, which is not what was verified: removed", digest, size)
            os.close(fd)
            self.drop(digest)
            return None
        entry = self._entries.get(digest)
        if entry is None or time.time() - entry.used > _TOUCH_SECONDS:
            self._note_use(digest, size, fd)
        return fd, size

    def size(self, digest: Digest) -> int | None:
        """The size of a complete blob; ``None`` = it is not here."""
        try:
            size = self.path(digest).stat().st_size
        except OSError:
            return None
        return size if size == self._right_size(digest) else None

    @contextmanager
    def in_use(self, digest: Digest) -> Iterator[None]:
        """Within the block the blob is not evicted."""
        self._in_use[digest] += 1
        try:
            yield
        finally:
            self._in_use[digest] -= 1
            if not self._in_use[digest]:
                del self._in_use[digest]

    def pin(self, digest: Digest) -> None:
        self._pins[digest] += 1

    def unpin(self, digest: Digest) -> None:
        self._pins[digest] -= 1
        if self._pins[digest] <= 0:
            del self._pins[digest]

    def digests(self) -> Iterator[Digest]:
        """Every complete blob; changes meanwhile may or may not show. Blocks for the disk."""
        for path in self._blobs.glob("??/*"):
            if (digest := _digest(path.name)) is not None:
                yield digest

    # -- changing ------------------------------------------------------------------------------------------

    def commit(self, partial: Partial) -> None:
        """Turn a verified partial blob into a blob. Blocks for the disk; call it from a thread."""
        assert partial.size is not None
        self._sizes.put(partial.digest.hex, partial.size)
        partial.commit(self.path(partial.digest))

    def committed(self, digest: Digest, size: int) -> None:
        """On the event loop, after ``commit``."""
        self._known[digest] = size
        self._account(digest, _Entry(size, time.time(), is_partial=False))

    def forget(self, digest: Digest) -> None:
        self._account(digest, None)

    def drop(self, digest: Digest) -> int:
        """Remove a complete blob; return the bytes freed. Readers that have it open keep it."""
        path = self.path(digest)
        try:
            size = path.stat().st_size
            path.unlink()
        except OSError:
            size = 0
        self._known.pop(digest, None)
        entry = self._entries.get(digest)
        if entry is not None and not entry.is_partial:
            self.forget(digest)
        return size

    def make_room(self, digest: Digest, size: int) -> None:
        """Count a blob of ``size`` that is about to come, and evict least recently used ones for it.

        Raise ``BlobStoreFullError`` when it does not fit beside those in use and the pinned ones. Blocks for
        the disk; call it from a thread.
        """
        with self._lock:
            self._account(digest, _Entry(size, time.time(), is_partial=True))
            self._evict()
            if self._used_bytes > self._quota_bytes:
                self._account(digest, None)
                raise BlobStoreFullError(
                    f"a blob of {size} bytes does not fit: cache.blob_bytes = {self._quota_bytes}, "
                    f"of which {self._used_bytes} are in use"
                )

    def _evict(self) -> None:
        if self._used_bytes <= self._quota_bytes:
            return
        for digest, entry in sorted(self._entries.items(), key=lambda item: item[1].used):
            if self._used_bytes <= self._quota_bytes:
                return
            if digest in self._in_use or digest in self._pins:
                continue
            if entry.is_partial:
                self._drop_partial(digest)
            else:
                self.drop(digest)
                metrics.BLOBS_EVICTED.inc()

    def scan(self) -> None:
        """Find out what is on disk, and sweep what nobody can use. Called once, before anything else."""
        self._blobs.mkdir(parents=True, exist_ok=True)
        self.fills.mkdir(parents=True, exist_ok=True)
        for path in self._blobs.glob("??/*"):
            digest = _digest(path.name)
            if digest is None or self._right_size(digest) != path.stat().st_size:
                log.warning("%s is no blob of ours: removed", path)
                path.unlink(missing_ok=True)
                continue
            stat = path.stat()
            self._account(digest, _Entry(stat.st_size, stat.st_mtime, is_partial=False))
        for path in self.fills.iterdir():
            digest = _digest(path.stem)
            if digest is None:
                path.unlink(missing_ok=True)
            elif path.suffix == ".part":
                self._adopt_partial(path, digest)
            elif not path.with_suffix(".part").exists():
                path.unlink(missing_ok=True)

    def _adopt_partial(self, path: Path, digest: Digest) -> None:
        stat = path.stat()
        is_old = time.time() - stat.st_mtime > _KEEP_PARTIAL_SECONDS
        try:
            partial = Partial.open(self.fills, digest)
        except PartialBusyError:
            return  # another worker's
        is_usable = partial.size is not None and partial.spans.total > 0 and stat.st_nlink == 1
        partial.close()
        if is_old or not is_usable or digest in self._entries:
            path.unlink(missing_ok=True)
            map_path(self.fills, digest).unlink(missing_ok=True)
        else:
            self._account(digest, _Entry(stat.st_blocks * 512, stat.st_mtime, is_partial=True))

    # -- accounts ------------------------------------------------------------------------------------------

    @property
    def used_bytes(self) -> int:
        return self._used_bytes

    def _account(self, digest: Digest, entry: _Entry | None) -> None:
        with self._lock:
            old = self._entries.pop(digest, None)
            self._used_bytes -= old.size if old is not None else 0
            if entry is not None:
                self._entries[digest] = entry
                self._used_bytes += entry.size
        metrics.BLOB_STORE_BYTES.set(self._used_bytes)

    def _drop_partial(self, digest: Digest) -> None:
        try:
            partial = Partial.open(self.fills, digest)
        except (PartialBusyError, OSError):
            return
        partial.discard()
        partial.close()
        self.forget(digest)

    def _note_use(self, digest: Digest, size: int, fd: int) -> None:
        self._account(digest, _Entry(size, time.time(), is_partial=False))
        try:
            os.utime(fd)
        except OSError as exc:
            log.debug("last use of %s not noted: %s", digest, exc)

    def _right_size(self, digest: Digest) -> int | None:
        size = self._known.get(digest)
        if size is None:
            try:
                size = self._sizes.get(digest.hex)
            except CacheError as exc:
                log.warning("the size of blob %s can not be read: %s", digest, exc)
            if size is not None:
                self._known[digest] = size
        return size


def _digest(name: str) -> Digest | None:
    try:
        return Digest.parse(f"sha256:{name}")
    except MalformedDigestError:
        return None
