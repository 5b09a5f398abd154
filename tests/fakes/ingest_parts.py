"""The mirror and the worker pool as the ingest sees them, in memory and scriptable."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastpull.cache.codec import encode
from fastpull.cache.digest import ChunkId, Digest, chunk_id
from fastpull.cache.store import ChunkStore
from fastpull.image.chain import BuiltChain, build_chain
from fastpull.image.layer_index import CHUNK_REF, Entry, EntryType, LayerIndex
from fastpull.proxy.errors import BlobUnknownError, ManifestUnknownError
from fastpull.proxy.ingest.job import LayerJob
from fastpull.proxy.mirror.blobs import BlobSource, FillProgress
from fastpull.proxy.mirror.manifests import StoredManifest

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass
class FakeHandle:
    digest: Digest
    path: Path
    size: int
    is_complete: bool = True
    fd: int = -1
    failure: Exception | None = None

    async def wait_available(self, offset: int) -> int:
        return self.size

    async def wait_readable(self, offset: int, *, unverified: bool = False) -> int:
        return self.size

    async def wait_complete(self) -> Path:
        if self.failure is not None:
            raise self.failure
        return self.path


@dataclass
class FakeMirror:
    """Blobs and manifests by digest, per upstream and repository; ``manifests`` and ``blobs`` in one."""

    root: Path
    contents: dict[tuple[str, str, str], bytes] = field(default_factory=dict)
    manifests_by_name: dict[tuple[str, str, str], tuple[str, bytes]] = field(default_factory=dict)
    opened: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    blob_failures: dict[str, Exception] = field(default_factory=dict)
    late_failures: dict[str, Exception] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    running: list[FillProgress] = field(default_factory=list)
    purged: list[str] = field(default_factory=list)

    def add_blob(self, data: bytes, *, upstream: str = "registry.test", repository: str = "app") -> str:
        digest = str(Digest.of(data))
        self.contents[upstream, repository, digest] = data
        return digest

    def add_manifest(
        self, body: bytes, media_type: str, tag: str, *, upstream: str = "registry.test", repository: str = "app"
    ) -> StoredManifest:
        digest = Digest.of(body)
        for reference in (tag, str(digest)):
            self.manifests_by_name[upstream, repository, reference] = (media_type, body)
        return StoredManifest(digest, media_type, body)

    async def get(self, upstream: str, repository: str, reference: str | Digest) -> StoredManifest:
        self.asked[f"{upstream}/{repository}/{reference}"] += 1
        try:
            media_type, body = self.manifests_by_name[upstream, repository, str(reference)]
        except KeyError:
            raise ManifestUnknownError(upstream, repository, reference) from None
        return StoredManifest(Digest.of(body), media_type, body)

    @property
    def blobs(self) -> FakeMirror:
        return self

    @property
    def manifests(self) -> FakeMirror:
        return self

    @property
    def used_bytes(self) -> int:
        return sum(map(len, self.contents.values()))

    def fills(self) -> list[FillProgress]:
        return self.running

    def drop(self, digest: Digest) -> int:
        self.dropped.append(str(digest))
        return 1

    async def purge(self, upstream: str, repository: str, reference: str | Digest) -> bool:
        self.purged.append(f"{upstream}/{repository} {reference}")
        return (upstream, repository, str(reference)) in self.manifests_by_name

    @asynccontextmanager
    async def open(self, source: BlobSource, *, first_offset: int = 0) -> AsyncIterator[FakeHandle]:
        digest = str(source.digest)
        self.opened[digest] += 1
        await asyncio.sleep(0)
        if (failure := self.blob_failures.get(digest)) is not None:
            raise failure
        data = self.contents.get((source.upstream, source.repository, digest))
        if data is None:
            raise BlobUnknownError(source.upstream, source.repository, source.digest)
        path = self.root / source.digest.hex
        path.write_bytes(data)
        yield FakeHandle(source.digest, path, len(data), failure=self.late_failures.get(digest))


def layer_blob(*files: tuple[str, bytes]) -> bytes:
    """What stands for a tar here: JSON of paths and hex contents."""
    return json.dumps({path: content.hex() for path, content in files}).encode()


@dataclass
class FakePool:
    """ "Ingests" ``layer_blob``s in this process; builds real chains."""

    store: ChunkStore
    jobs: list[LayerJob] = field(default_factory=list)
    failures: dict[str, list[Exception]] = field(default_factory=dict)  # by diffID, one for each attempt
    gate: asyncio.Event | None = None  # jobs wait for it
    running: int = 0
    most_running: int = 0
    built: int = 0

    async def ingest(
        self,
        job: LayerJob,
        *,
        available: Callable[[int], Awaitable[int]],
        progress: Callable[[int], None],
    ) -> bytes:
        self.jobs.append(job)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            if self.gate is not None:
                await self.gate.wait()
            await available(0)
            if self.failures.get(str(job.diff_id)):
                raise self.failures[str(job.diff_id)].pop(0)
            progress(job.blob_bytes)
            return self._index(job)
        finally:
            self.running -= 1

    async def build_chain(self, indexes: Sequence[bytes]) -> BuiltChain:
        self.built += 1
        return build_chain([LayerIndex.from_bytes(index) for index in indexes])

    def _index(self, job: LayerJob) -> bytes:
        entries, new, total = [], 0, 0
        for path, text in json.loads(job.path.read_bytes()).items():
            content = bytes.fromhex(text)
            chunk = chunk_id(content)
            new += len(content) if not self.store.has([chunk])[0] else 0
            total += len(content)
            self.store.put_many([(chunk, encode(content))])
            entries.append(
                Entry(
                    path=path.encode(),
                    type=EntryType.FILE,
                    size=len(content),
                    chunks=CHUNK_REF.pack(chunk, len(content)) if content else b"",
                )
            )
        return LayerIndex(diff_id=str(job.diff_id), entries=entries, content_bytes=total, new_bytes=new).to_bytes()


def diff_id_of(blob: bytes) -> str:
    """An invented diffID: the fakes have no tar to hash."""
    return f"sha256:{hashlib.sha256(b'diff' + blob).hexdigest()}"


def add_image(
    mirror: FakeMirror,
    layers: Sequence[bytes],
    tag: str = "1",
    *,
    upstream: str = "registry.test",
    repository: str = "app",
    platform: tuple[str, str] = ("linux", "amd64"),
    media_type: str = OCI_LAYER,
    diff_ids: Sequence[str] | None = None,
) -> StoredManifest:
    """Put an image of ``layer_blob``s into the mirror."""
    config = json.dumps(
        {
            "os": platform[0],
            "architecture": platform[1],
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids or map(diff_id_of, layers))},
        }
    ).encode()
    where = {"upstream": upstream, "repository": repository}
    body = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": mirror.add_blob(config, **where), "size": len(config)},
            "layers": [
                {"mediaType": media_type, "digest": mirror.add_blob(blob, **where), "size": len(blob)}
                for blob in layers
            ],
        }
    ).encode()
    return mirror.add_manifest(body, OCI_MANIFEST, tag, **where)


def chunk_of(content: bytes) -> ChunkId:
    return chunk_id(content)
