"""One layer through the whole ingest, on a handful of threads.

    blob → inflate, hash the tar → read it, cut, name → compress what is new → write
           one thread              the caller          several threads         one thread

The heavy calls (inflate, hashes, FastCDC, zstd, file writes) release the GIL; between the threads go pieces and
batches of 1 MiB: enough that hand-overs cost next to nothing, and so few that all of what is under way fits the
cores' shared cache. Memory is bounded by that: ``_PIECES`` pieces and a batch or two for each thread, however
large the layer. A chunk is looked up in the store once, and compressed only if it is new.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Protocol

from fastpull.cache.digest import ChunkId, Digest
from fastpull.cache.store import StoredChunk
from fastpull.image.chunking import Buffer, Chunk
from fastpull.image.decompress import check_media_type, decompress
from fastpull.image.errors import LayerDigestError
from fastpull.image.layer_builder import LayerContent, read_layer
from fastpull.image.layer_index import LayerIndex
from fastpull.image.limits import LayerLimits
from fastpull.proxy.ingest.crew import Channel, Crew
from fastpull.proxy.ingest.encoding import BatchEncoder

_PIECES = 4  # of 1 MiB, between inflating and reading
_BATCH_BYTES = 1 << 20
_BATCH_CHUNKS = 512
_WRITE_BYTES = 16 << 20  # stored bytes in one transaction: each rewrites pages of the index

Batch = list[Chunk]
Encoded = list[tuple[ChunkId, StoredChunk]]


class IngestStore(Protocol):
    """What the ingest needs of a ``ChunkStore``."""

    def has(self, chunks: Sequence[ChunkId]) -> list[bool]: ...

    def touch(self, chunks: Iterable[ChunkId]) -> None: ...

    def put_many(self, chunks: Iterable[tuple[ChunkId, StoredChunk]]) -> int: ...

    def sync(self) -> None: ...


@dataclass(frozen=True, slots=True)
class LayerSource:
    """A layer's blob and what it is said to be."""

    blob: Iterable[bytes]
    media_type: str
    diff_id: Digest
    verify_blob: Digest | None = None  # for blobs that nobody has verified
    stop: Callable[[], None] = lambda: None  # makes ``blob`` end, or raise, although its bytes are not there yet


class LayerPipeline:
    """Ingests one layer. ``stop`` may be called from any thread."""

    def __init__(
        self, source: LayerSource, store: IngestStore, limits: LayerLimits, *, zstd_level: int, compressors: int
    ) -> None:
        self._source = source
        self._store = store
        self._limits = limits
        self._zstd_level = zstd_level
        self._compressors = compressors
        self._crew = Crew(on_stop=source.stop)
        self._pieces: Channel[bytes] = Channel(self._crew, _PIECES)
        self._batches: Channel[Batch] = Channel(self._crew, compressors)
        self._encoded: Channel[Encoded] = Channel(self._crew, compressors, givers=compressors)
        self._tar_hash = hashlib.sha256()
        self._tar_bytes = 0
        self._new_bytes = 0
        self._stored_bytes = 0
        # Chunks handed on and not yet written: another occurrence is not looked up. Threads only add and remove.
        self._pending: set[ChunkId] = set()

    def run(self) -> LayerIndex:
        """Index the layer. When this returns, its chunks are in the store to stay and its digests were right.

        Raise the ``ImageError`` that says what is wrong with it, ``CacheError``, ``OSError``, or what
        ``stop`` was given. Chunks that were written before are garbage, and harmless.
        """
        check_media_type(self._source.media_type)
        contents: list[LayerContent] = []
        self._crew.spawn(self._inflate, name="inflate")
        for number in range(self._compressors):
            self._crew.spawn(self._compress, name=f"compress-{number}")
        self._crew.spawn(self._write, name="write")
        self._crew.guard(lambda: contents.append(self._read()))
        self._crew.join()
        got = Digest(self._tar_hash.hexdigest())
        if got != self._source.diff_id:
            raise LayerDigestError(f"the layer's tar is {got}, the image says {self._source.diff_id}")
        self._store.sync()
        return LayerIndex(
            str(got),
            contents[0].entries,
            contents[0].content_bytes,
            self._new_bytes,
            self._stored_bytes,
            self._tar_bytes,
        )

    def stop(self, why: BaseException) -> None:
        """Make ``run`` raise ``why`` soon."""
        self._crew.stop(why)

    def _inflate(self) -> None:
        blob = self._source.blob
        if self._source.verify_blob is not None:
            blob = _verified(blob, self._source.verify_blob)
        for piece in decompress(blob):
            self._tar_hash.update(piece)  # while it is in this core's cache
            self._tar_bytes += len(piece)
            self._limits.check_bytes(self._tar_bytes, "the layer's tar")
            self._pieces.put(piece)
        self._pieces.close()

    def _read(self) -> LayerContent:
        batcher = _Batcher(self._pending, self._batches.put)
        content = read_layer(self._pieces, batcher.keep, self._limits)
        batcher.flush()
        self._batches.close()
        return content

    def _compress(self) -> None:
        encoder = BatchEncoder(self._zstd_level)
        for batch in self._batches:
            ids = [chunk for chunk, _ in batch]
            known = self._store.has(ids)
            if any(known):
                old = list(compress(ids, known))
                self._store.touch(old)
                self._pending.difference_update(old)
                batch = [named for named, is_known in zip(batch, known, strict=True) if not is_known]
            if batch:
                self._encoded.put(encoder.encode(batch))
        self._encoded.close()

    def _write(self) -> None:
        waiting: Encoded = []
        size = 0
        for batch in self._encoded:
            waiting += batch
            size += sum(len(stored.data) for _, stored in batch)
            if size >= _WRITE_BYTES:
                self._put(waiting)
                waiting, size = [], 0
        if waiting:
            self._put(waiting)

    def _put(self, chunks: Encoded) -> None:
        self._stored_bytes += self._store.put_many(chunks)
        self._new_bytes += sum(stored.size for _, stored in chunks)
        self._pending.difference_update([chunk for chunk, _ in chunks])


class _Batcher:
    """Collects chunks until a batch is worth a hand-over.

    A chunk is a view that keeps its piece of the tar alive, so what passes by counts too: a batch of few small
    new chunks among many known ones must not pin all the pieces between them.
    """

    def __init__(self, pending: set[ChunkId], hand_over: Callable[[Batch], None]) -> None:
        self._pending = pending
        self._hand_over = hand_over
        self._batch: Batch = []
        self._kept = self._passed = 0

    def keep(self, chunk: ChunkId, data: Buffer) -> None:
        self._passed += len(data)
        if chunk not in self._pending:
            self._pending.add(chunk)
            self._batch.append((chunk, data))
            self._kept += len(data)
        if self._kept >= _BATCH_BYTES or self._passed >= 2 * _BATCH_BYTES or len(self._batch) >= _BATCH_CHUNKS:
            self.flush()

    def flush(self) -> None:
        if self._batch:
            self._hand_over(self._batch)
            self._batch = []
        self._kept = self._passed = 0


def _verified(blob: Iterable[bytes], digest: Digest) -> Iterator[bytes]:
    """Pass the blob on. Raise ``LayerDigestError`` at its end if it is another one."""
    blob_hash = hashlib.sha256()
    for piece in blob:
        blob_hash.update(piece)
        yield piece
    if blob_hash.hexdigest() != digest.hex:
        raise LayerDigestError(f"the layer's blob is sha256:{blob_hash.hexdigest()}, the image says {digest}")
