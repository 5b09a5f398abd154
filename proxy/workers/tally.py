"""What a follower has done and not yet told the leader."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Counter

from fastpull.cache.digest import CHUNK_ID_BYTES, ChunkId, Digest
from fastpull.proxy import metrics
from fastpull.proxy.workers.messages import MAX_BLOBS, MAX_CHUNKS, Count, Report

_ANSWERS = "worker_answers"
_GROWING: dict[str, Counter] = {
    "requests": metrics.REQUESTS,
    "api_requests": metrics.API_REQUESTS,
    "client_bytes": metrics.CLIENT_BYTES,
    "chunks_sent": metrics.CHUNKS_SENT,
    "chunk_bytes_sent": metrics.CHUNK_BYTES_SENT,
}
REPORTED = {**_GROWING, _ANSWERS: metrics.WORKER_ANSWERS}
"""The counters that a report may name."""


class Tally:
    """Collects uses, and reads how far this process's counters have grown."""

    def __init__(self, number: int) -> None:
        self._number = str(number)
        self._batches = 0
        self._chunks: set[ChunkId] = set()
        self._blobs: set[Digest] = set()
        self._told: dict[tuple[str, tuple[str, ...]], float] = {}

    def use_chunks(self, chunks: Iterable[ChunkId]) -> None:
        """A batch of chunks is answered."""
        self._batches += 1
        if len(self._chunks) < MAX_CHUNKS:
            self._chunks.update(chunks)

    def use_blob(self, digest: Digest) -> None:
        if len(self._blobs) < MAX_BLOBS:
            self._blobs.add(digest)

    def take(self) -> Report:
        """Everything since the last call. A report that can not be sent is lost."""
        chunks, self._chunks = self._chunks, set()
        blobs, self._blobs = self._blobs, set()
        return Report(
            counts=tuple(self._counts()),
            chunks=b"".join(chunks)[: MAX_CHUNKS * CHUNK_ID_BYTES],
            blobs=tuple(map(str, blobs)),
        )

    def _counts(self) -> Iterable[Count]:
        answers, self._batches = float(self._batches), 0
        for name, counter in _GROWING.items():
            for labels, value in _values(counter):
                grown = value - self._told.get((name, labels), 0.0)
                if grown > 0:
                    self._told[name, labels] = value
                    answers += grown if counter is metrics.REQUESTS else 0.0
                    yield Count(name, labels, grown)
        if answers:
            yield Count(_ANSWERS, (self._number,), answers)


def _values(counter: Counter) -> Iterable[tuple[tuple[str, ...], float]]:
    for family in counter.collect():
        for sample in family.samples:
            if sample.name.endswith("_total"):
                yield tuple(sample.labels.values()), sample.value
