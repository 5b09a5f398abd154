"""One snapshot as it stands in memory and on disk."""

from __future__ import annotations

import enum

import msgspec

from fastpull.cache.digest import Digest


class Kind(enum.IntEnum):
    """The values are those of ``containerd.services.snapshots.v1.Kind``."""

    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


class Usage(msgspec.Struct, frozen=True):
    """What a snapshot itself takes on disk, without its parents."""

    size: int = 0  # bytes, allocated
    inodes: int = 0


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A record of the table ``snapshots``, under ``id``. Fields are only ever added, with a default.

    ``id`` names the directory ``snapshots/<id>`` and never changes; ``name`` does, once, at commit.
    A *placeholder* (``lazy_chain`` set) is a committed layer without a directory of its own: its files
    are those of the whole chain, mounted on demand.
    """

    id: int
    name: str
    parent: str = ""  # name of the parent; parents are committed, so their names are final
    kind: Kind
    labels: dict[str, str] = {}
    created_ns: int  # since the epoch
    updated_ns: int
    usage: Usage | None = None  # of committed snapshots; None = not measured yet
    lazy_chain: str = ""  # ``sha256:…`` of the chain that a placeholder stands for

    @property
    def chain(self) -> Digest | None:
        """The chain of a placeholder, else None."""
        return Digest.parse(self.lazy_chain) if self.lazy_chain else None
