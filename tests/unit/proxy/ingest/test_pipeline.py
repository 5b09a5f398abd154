"""A layer goes through the pipeline whole and right, or not at all."""

import gzip
import hashlib
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest
import zstandard
from fakes.tars import END, header, member

from fastpull.cache.codec import decode
from fastpull.cache.digest import ChunkId, Digest
from fastpull.cache.errors import StoreFullError
from fastpull.cache.store import Encoding, StoredChunk
from fastpull.image.errors import (
    LayerDigestError,
    LayerFormatError,
    LimitExceededError,
    UnsafeEntryError,
    UnsupportedMediaTypeError,
)
from fastpull.image.layer_index import LayerIndex
from fastpull.image.limits import LayerLimits
from fastpull.proxy.ingest.crew import StoppedError
from fastpull.proxy.ingest.pipeline import LayerPipeline, LayerSource

GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
LIMITS = LayerLimits(max_entries=100_000, max_path_bytes=4096, max_bytes=1 << 40)
TIMEOUT = 60


class DictStore:
    """What the pipeline needs of a store, and what it did with it."""

    def __init__(self) -> None:
        self.chunks: dict[ChunkId, StoredChunk] = {}
        self.durable: set[ChunkId] = set()
        self.touched: set[ChunkId] = set()
        self.encoded = 0

    def has(self, chunks: Sequence[ChunkId]) -> list[bool]:
        return [chunk in self.chunks for chunk in chunks]

    def touch(self, chunks: Iterable[ChunkId]) -> None:
        self.touched.update(chunks)

    def put_many(self, chunks: Iterable[tuple[ChunkId, StoredChunk]]) -> int:
        added = 0
        for chunk, stored in chunks:
            self.encoded += 1
            if chunk not in self.chunks:
                self.chunks[chunk] = stored._replace(data=bytes(stored.data))
                added += len(stored.data)
        return added

    def sync(self) -> None:
        self.durable = set(self.chunks)

    def content(self, index: LayerIndex) -> dict[bytes, bytes]:
        return {
            entry.path: b"".join(decode(self.chunks[chunk], chunk) for chunk, _ in entry.chunk_refs())
            for entry in index.entries
        }


def pieces(blob: bytes) -> Iterator[bytes]:
    return (blob[at : at + 50_000] for at in range(0, len(blob), 50_000))


def ingest(
    tar: bytes,
    store: DictStore,
    *,
    blob: bytes | None = None,
    diff_id: Digest | None = None,
    media_type: str = GZIP,
    limits: LayerLimits = LIMITS,
    verify_blob: Digest | None = None,
) -> LayerIndex:
    blob = gzip.compress(tar, 1) if blob is None else blob
    source = LayerSource(pieces(blob), media_type, diff_id or Digest.of(tar), verify_blob)
    return LayerPipeline(source, store, limits, zstd_level=1, compressors=2).run()


FILES = {b"f%d" % n: random.Random(n).randbytes(n * n * 40) + b"text " * n for n in range(1, 120)}
TAR = b"".join(member(name, data) for name, data in FILES.items()) + END


def test_every_file_can_be_put_together_from_the_store() -> None:
    store = DictStore()
    index = ingest(TAR, store)
    assert store.content(index) == FILES
    assert index.diff_id == str(Digest.of(TAR))
    assert index.tar_bytes == len(TAR)
    assert index.content_bytes == index.new_bytes == sum(map(len, FILES.values()))
    assert index.stored_bytes == sum(len(stored.data) for stored in store.chunks.values())
    assert store.durable == set(store.chunks)


@pytest.mark.parametrize("compress", [lambda tar: tar, zstandard.ZstdCompressor().compress], ids=["plain", "zstd"])
def test_the_compression_changes_nothing(compress: Callable[[bytes], bytes]) -> None:
    store = DictStore()
    assert ingest(TAR, store, blob=compress(TAR)) == ingest(TAR, DictStore())


def test_what_is_there_already_is_used_not_encoded() -> None:
    store = DictStore()
    first = ingest(TAR, store)
    count = store.encoded
    again = ingest(TAR, store)
    assert store.encoded == count
    assert (again.new_bytes, again.stored_bytes) == (0, 0)
    assert again.entries == first.entries
    assert store.touched == set(store.chunks)


def test_a_chunk_that_a_layer_repeats_is_encoded_once() -> None:
    """Also while its first occurrence is still on its way to the store."""
    store = DictStore()
    tar = b"".join(member(b"copy%d" % n, FILES[b"f100"]) for n in range(50)) + END
    index = ingest(tar, store)
    assert store.encoded == len(store.chunks)
    assert index.content_bytes == 50 * index.new_bytes


def test_chunks_that_do_not_shrink_stay_raw() -> None:
    store = DictStore()
    ingest(member(b"noise", random.Random(1).randbytes(5000)) + member(b"text", b"text" * 2000) + END, store)
    assert sorted(stored.encoding for stored in store.chunks.values()) == [Encoding.RAW, Encoding.ZSTD]


def test_an_empty_layer_is_a_layer() -> None:
    for tar in (b"", END):
        index = ingest(tar, DictStore(), blob=tar)
        assert index.entries == []


WRONG = [
    pytest.param({"diff_id": Digest("0" * 64)}, LayerDigestError, id="another-diff-id"),
    pytest.param({"verify_blob": Digest("0" * 64)}, LayerDigestError, id="another-blob"),
    pytest.param({"blob": gzip.compress(TAR, 1)[:-9]}, LayerFormatError, id="cut-gzip"),
    pytest.param({"blob": zstandard.compress(TAR)[:-9]}, LayerFormatError, id="cut-zstd"),
    pytest.param({"blob": b"no tar" * 1000}, LayerFormatError, id="no-tar"),
    pytest.param({"tar": header(b"../x") + END}, UnsafeEntryError, id="leaves-the-root"),
    pytest.param({"media_type": GZIP + "+encrypted"}, UnsupportedMediaTypeError, id="encrypted"),
    pytest.param({"limits": LayerLimits(10, 4096, 1 << 40)}, LimitExceededError, id="too-many-entries"),
    pytest.param({"limits": LayerLimits(10_000, 4096, 1 << 20)}, LimitExceededError, id="too-large"),
]


@pytest.mark.parametrize(("case", "error"), WRONG)
def test_wrong_layers_are_refused_and_leave_no_thread(case: dict[str, object], error: type[Exception]) -> None:
    before = threading.active_count()
    with pytest.raises(error):
        ingest(**{"tar": TAR, "store": DictStore(), **case})  # type: ignore[arg-type]
    assert threading.active_count() == before


def test_the_blob_can_be_verified_too() -> None:
    blob = gzip.compress(TAR, 1)
    assert ingest(TAR, DictStore(), blob=blob, verify_blob=Digest(hashlib.sha256(blob).hexdigest())).entries


def test_a_full_store_ends_it() -> None:
    class FullStore(DictStore):
        def put_many(self, chunks: Iterable[tuple[ChunkId, StoredChunk]]) -> int:
            raise StoreFullError("no room")

    with pytest.raises(StoreFullError):
        ingest(TAR, FullStore())


def test_a_blob_that_can_not_be_read_ends_it() -> None:
    def broken() -> Iterator[bytes]:
        yield gzip.compress(TAR, 1)[:100_000]
        raise OSError("gone")

    source = LayerSource(broken(), GZIP, Digest.of(TAR))
    with pytest.raises(OSError, match="gone"):
        LayerPipeline(source, DictStore(), LIMITS, zstd_level=1, compressors=1).run()


def test_it_can_be_called_off_while_it_waits_for_bytes() -> None:
    """The source's own stop is what wakes it."""
    waiting, stopped = threading.Event(), threading.Event()

    def stalled() -> Iterator[bytes]:
        yield gzip.compress(TAR, 1)[:100_000]
        waiting.set()
        assert stopped.wait(TIMEOUT)
        raise StoppedError

    source = LayerSource(stalled(), GZIP, Digest.of(TAR), stop=stopped.set)
    pipeline = LayerPipeline(source, DictStore(), LIMITS, zstd_level=1, compressors=1)
    outcome: list[BaseException] = []

    def run() -> None:
        try:
            pipeline.run()
        except BaseException as exc:
            outcome.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    assert waiting.wait(TIMEOUT)
    why = StoppedError("called off")
    pipeline.stop(why)
    thread.join(TIMEOUT)
    assert outcome == [why]


def test_few_new_chunks_do_not_pin_the_tar_between_them() -> None:
    """Batches are handed on by what passed, not only by what they hold."""
    held: list[int] = []

    class CountingStore(DictStore):
        def has(self, chunks: Sequence[ChunkId]) -> list[bool]:
            held.append(len(chunks))
            return super().has(chunks)

    filler = random.Random(0).randbytes(200_000)
    tar = b"".join(member(b"new%d" % n, b"new %d" % n) + member(b"old%d" % n, filler) for n in range(120)) + END
    ingest(tar, CountingStore())
    assert len(held) >= 120 * len(filler) // (8 << 20)
