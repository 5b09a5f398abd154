"""Names of content: OCI digests, chain ids and chunk ids."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NewType, Self

from blake3 import blake3

from fastpull.cache.errors import MalformedDigestError

_SHA256 = re.compile(r"[0-9a-f]{64}")

ChunkId = NewType("ChunkId", bytes)
"""BLAKE3-256 of a chunk's uncompressed bytes: 32 raw bytes."""

CHUNK_ID_BYTES = 32


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A sha256 content address (blob digest, diffID or chainID). Holding one proves it was well formed."""

    hex: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """``sha256:<64 hex>`` → digest. Raise ``MalformedDigestError``."""
        algorithm, _, hex_ = text.partition(":")
        if algorithm != "sha256" or not _SHA256.fullmatch(hex_):
            raise MalformedDigestError(text)
        return cls(hex_)

    @classmethod
    def of(cls, data: bytes | memoryview) -> Self:
        return cls(hashlib.sha256(data).hexdigest())

    def __str__(self) -> str:
        return f"sha256:{self.hex}"


def chain_ids(diff_ids: Iterable[Digest]) -> list[Digest]:
    """The chainID of every prefix of a layer sequence, shortest first.

    OCI image-spec, config.md, "Layer ChainID": ChainID(L0) = DiffID(L0),
    ChainID(L0|…|Ln) = sha256(ChainID(L0|…|Ln-1) + " " + DiffID(Ln)).
    """
    chains: list[Digest] = []
    for diff_id in diff_ids:
        chains.append(Digest.of(f"{chains[-1]} {diff_id}".encode()) if chains else diff_id)
    return chains


def chunk_id(data: bytes | memoryview) -> ChunkId:
    """The id of a chunk, from its uncompressed bytes."""
    return ChunkId(blake3(data).digest())
