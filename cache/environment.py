"""Opening LMDB environments, and what their failures mean here.

Rules that LMDB imposes and all users of this module keep: a process opens an environment once; nothing of it
is used in a child after ``fork`` (the child opens its own; ``spawn`` and ``exec`` are safe); a transaction
stays on its thread, is short, and never lives across an ``await``; the files are on a local file system.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from fastpull.cache.errors import CacheError, IndexDamagedError, StoreFullError, StoreVersionError

MAX_READERS = 1024  # threads with an open read transaction, of all processes together


def open_environment(
    path: Path, *, map_bytes: int, databases: int, sync: bool = True, metasync: bool = False
) -> lmdb.Environment:
    """Open or create the environment in the directory ``path``. Raise ``CacheError`` with the cause.

    With ``sync`` a commit flushes the data it points to before it writes the pointer; with ``metasync`` the
    pointer too, else it is left to the next flush, and a power loss may undo the newest commit, never half of it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise CacheError(f"{path}: {exc.strerror}; give a directory that can be written") from exc
    with translated(path):
        environment = lmdb.open(
            str(path),
            map_size=map_bytes,
            max_dbs=databases,
            max_readers=MAX_READERS,
            max_spare_txns=16,  # reset and renewed, a read transaction costs 0.9 us
            metasync=metasync,
            sync=sync,
            meminit=False,  # pages are written whole; zeroing them first is a tenth of a put
            mode=0o640,
        )
        environment.reader_check()  # slots of killed processes would keep old pages from reuse
    return environment


@contextmanager
def translated(path: Path, *, with_system_calls: bool = False) -> Iterator[None]:
    """Raise LMDB's failures as what they mean: ``StoreFullError``, ``StoreVersionError``, … or ``CacheError``.

    ``with_system_calls`` does the same for every ``OSError``: for blocks that run no code of others.
    """
    try:
        yield
    except (lmdb.MapFullError, lmdb.DiskError) as exc:
        raise StoreFullError(f"{path}: {exc}") from exc
    except lmdb.VersionMismatchError as exc:
        raise StoreVersionError(f"{path}: written by another version of LMDB ({exc})") from exc
    except (lmdb.InvalidError, lmdb.CorruptedError, lmdb.PageNotFoundError) as exc:
        raise IndexDamagedError(f"{path}: {exc}") from exc
    except lmdb.Error as exc:
        if exc.code == errno.ENOSPC:
            raise StoreFullError(f"{path}: {exc}") from exc
        raise CacheError(f"{path}: {exc}") from exc
    except OSError as exc:
        if not with_system_calls:
            raise
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFullError(f"{path}: {exc.strerror}") from exc
        raise CacheError(f"{path}: {exc}") from exc
