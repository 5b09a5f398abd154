"""Manifests and tags: verbatim bytes, asked for as rarely as freshness allows."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import aiohttp
import msgspec

from fastpull.cache.digest import Digest
from fastpull.cache.errors import CacheError
from fastpull.cache.single_flight import SingleFlight
from fastpull.cache.tables import Database
from fastpull.cache.tasks import Tasks
from fastpull.cache.writer import Writer
from fastpull.config.proxy import MirrorSettings
from fastpull.proxy.errors import (
    ManifestUnknownError,
    MirrorError,
    UpstreamInvalidError,
    UpstreamUnavailableError,
)
from fastpull.proxy.mirror.manifest_types import (
    ACCEPT,
    MAX_MANIFEST_BYTES,
    decoded,
    is_known_type,
    manifest_type,
)
from fastpull.proxy.mirror.recent import Recent
from fastpull.proxy.mirror.tag_policy import Freshness, TagRecord, freshness
from fastpull.proxy.upstream.client import Upstream
from fastpull.proxy.upstream.registry import Upstreams

log = logging.getLogger(__name__)

MANIFESTS_TABLE = "mirror_manifests"
TAGS_TABLE = "mirror_tags"
TABLES = (MANIFESTS_TABLE, TAGS_TABLE)


class BrokenAnswerError(UpstreamInvalidError):
    """A manifest was cut, or is not what it was asked for."""


class ManifestRecord(msgspec.Struct, frozen=True):
    """A manifest as upstream sent it, by ``<upstream>/<repository>@<digest>``."""

    media_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest, verbatim. ``stale_reason`` says why the answer may be out of date, ``None`` = it is not."""

    digest: Digest
    media_type: str
    body: bytes
    stale_reason: str | None = None


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """What a HEAD tells."""

    digest: Digest
    media_type: str
    size: int
    stale_reason: str | None = None


class Manifests:
    """Manifests of all upstreams. Digests are kept for ever, tags as long as the settings say.

    Docker Hub counts each GET of a manifest as a pull and no HEAD, so a HEAD of ours becomes a HEAD upstream, a tag
    that is due is checked by HEAD, and a GET is sent only for bytes that are not here.
    """

    def __init__(
        self,
        settings: MirrorSettings,
        upstreams: Upstreams,
        database: Database,
        writer: Writer,
        tasks: Tasks,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._upstreams = upstreams
        self._manifests = database.table(MANIFESTS_TABLE, ManifestRecord)
        self._tags = database.table(TAGS_TABLE, TagRecord)
        self._writer = writer
        self._clock = clock
        self._flights: SingleFlight[tuple[str, str, str, str], StoredManifest | ManifestHead | MirrorError]
        self._flights = SingleFlight(tasks)
        self._absent: Recent[tuple[str, str, str], MirrorError] = Recent(settings.negative_ttl_seconds)

    # -- what routes and ingest call ------------------------------------------------------------------------

    async def get(self, upstream: str, repository: str, reference: str | Digest) -> StoredManifest:
        """The manifest. Raise ``ManifestUnknownError`` or another ``MirrorError``; never one that is not verified."""
        if isinstance(reference, Digest):
            stored = self._stored(upstream, repository, reference)
            return stored or await self._fetch(upstream, repository, reference)
        tag = self._tag(upstream, repository, reference)
        state = self._freshness(tag)
        if tag is None or state is Freshness.TOO_OLD:
            return await self._fetch(upstream, repository, reference)
        digest, reason = Digest.parse(tag.digest), None
        if state is Freshness.DUE:
            head = await self._check(upstream, repository, reference)
            digest, reason = head.digest, head.stale_reason
        manifest = self._stored(upstream, repository, digest) or await self._fetch(upstream, repository, digest)
        return replace(manifest, stale_reason=reason)

    async def head(self, upstream: str, repository: str, reference: str | Digest) -> ManifestHead:
        """What ``get`` would give, without spending a pull on it."""
        if isinstance(reference, Digest):
            stored = self._stored(upstream, repository, reference)
            if stored is not None:
                return ManifestHead(stored.digest, stored.media_type, len(stored.body))
            return await self._head(upstream, repository, reference)
        tag = self._tag(upstream, repository, reference)
        state = self._freshness(tag)
        if tag is None or state is Freshness.TOO_OLD:
            return await self._head(upstream, repository, reference)
        if state is Freshness.DUE:
            return await self._check(upstream, repository, reference)
        return ManifestHead(Digest.parse(tag.digest), tag.media_type, tag.size)

    async def purge(self, upstream: str, repository: str, reference: str | Digest) -> bool:
        """Forget a tag, so that the next pull asks upstream, or a manifest. Return whether it was known."""
        self._absent.pop((upstream, repository, str(reference)))
        table = self._manifests if isinstance(reference, Digest) else self._tags
        return await self._writer.run(table.delete, _key(upstream, repository, reference))

    def is_manifest(self, upstream: str, repository: str, digest: Digest) -> bool:
        """Is this digest that of a manifest that has passed through here?"""
        return self._stored(upstream, repository, digest) is not None

    # -- tags ----------------------------------------------------------------------------------------------

    def _freshness(self, tag: TagRecord | None) -> Freshness:
        settings = self._settings
        return freshness(tag, self._clock(), settings.tag_ttl_seconds, settings.tag_max_stale_seconds)

    async def _check(self, upstream: str, repository: str, tag: str) -> ManifestHead:
        """HEAD for a tag that is due. If upstream can not be asked, the old answer with the reason."""
        try:
            return await self._head(upstream, repository, tag)
        except ManifestUnknownError:
            await self._writer.run(self._tags.delete, _key(upstream, repository, tag))
            raise
        except MirrorError as exc:
            record = self._tag(upstream, repository, tag)
            if not exc.is_transient or record is None:
                raise
            log.warning("%s/%s:%s: answered from the cache: %s", upstream, repository, tag, exc)
            return ManifestHead(Digest.parse(record.digest), record.media_type, record.size, str(exc))

    # -- upstream ------------------------------------------------------------------------------------------

    async def _fetch(self, upstream: str, repository: str, reference: str | Digest) -> StoredManifest:
        result = await self._shared("GET", upstream, repository, reference)
        assert isinstance(result, StoredManifest)
        return result

    async def _head(self, upstream: str, repository: str, reference: str | Digest) -> ManifestHead:
        result = await self._shared("HEAD", upstream, repository, reference)
        if isinstance(result, StoredManifest):  # upstream's HEAD said too little
            return ManifestHead(result.digest, result.media_type, len(result.body))
        return result

    async def _shared(
        self, method: str, upstream: str, repository: str, reference: str | Digest
    ) -> StoredManifest | ManifestHead:
        key = (upstream, repository, str(reference))
        result: StoredManifest | ManifestHead | MirrorError | None = self._absent.get(key)
        if result is None:
            client = self._upstreams.get(upstream)
            flight = (method, *key)
            result = await self._flights.get(flight, lambda: self._outcome(method, client, repository, reference))
            if isinstance(result, ManifestUnknownError):
                self._absent.put(key, result)
        if isinstance(result, MirrorError):
            raise result.with_traceback(None)  # it is raised to many, and would collect all their frames
        return result

    async def _outcome(
        self, method: str, client: Upstream, repository: str, reference: str | Digest
    ) -> StoredManifest | ManifestHead | MirrorError:
        """``_ask``, with an error as a value: whoever waits reports it, so the task must not."""
        try:
            return await self._ask(method, client, repository, reference)
        except MirrorError as exc:
            return exc

    async def _ask(
        self, method: str, client: Upstream, repository: str, reference: str | Digest
    ) -> StoredManifest | ManifestHead:
        """One question, asked twice when the answer is broken, and answered in time for containerd to go elsewhere."""
        seconds = self._settings.answer_timeout_seconds
        ask = self._get_upstream if method == "GET" else self._head_upstream
        try:
            async with asyncio.timeout(seconds):
                try:
                    return await ask(client, repository, reference)
                except BrokenAnswerError as exc:
                    log.info("%s/%s %s: %s; asking again", client.name, repository, reference, exc)
                    return await ask(client, repository, reference)
        except TimeoutError as exc:
            raise UpstreamUnavailableError(f"{client.name} sent no manifest within {seconds:g} s") from exc

    async def _head_upstream(
        self, client: Upstream, repository: str, reference: str | Digest
    ) -> StoredManifest | ManifestHead:
        path = f"{repository}/manifests/{reference}"
        async with client.request("HEAD", path, repository=repository, headers={"Accept": ACCEPT}) as response:
            if response.status == 404:
                raise ManifestUnknownError(client.name, repository, reference)
            headers = response.headers
        head = _read_head(
            headers.get("Docker-Content-Digest"), headers.get("Content-Type"), headers.get("Content-Length")
        )
        if head is None or (isinstance(reference, Digest) and head.digest != reference):
            return await self._get_upstream(client, repository, reference)
        if not isinstance(reference, Digest):
            await self._note_tag(client.name, repository, reference, head)
        return head

    async def _get_upstream(self, client: Upstream, repository: str, reference: str | Digest) -> StoredManifest:
        path = f"{repository}/manifests/{reference}"
        async with client.request("GET", path, repository=repository, headers={"Accept": ACCEPT}) as response:
            if response.status == 404:
                raise ManifestUnknownError(client.name, repository, reference)
            if response.status != 200:
                raise UpstreamInvalidError(f"{client.name} answered {response.status} for {path}")
            body = await _read_body(client.name, response)
            content_type = response.headers.get("Content-Type")
            claimed = response.headers.get("Docker-Content-Digest")
        digest = Digest.of(body)
        media_type = manifest_type(body, content_type)
        if media_type is None:
            raise BrokenAnswerError(
                f"{client.name} sent something else than an image manifest for {path} ({(content_type or '')[:60]})"
            )
        expected = str(reference) if isinstance(reference, Digest) else claimed
        if expected is not None and expected.startswith("sha256:") and expected != str(digest):
            raise BrokenAnswerError(f"{client.name} sent {path} as {expected[:80]}, but its digest is {digest}")
        manifest = StoredManifest(digest, media_type, body)
        await self._keep(client.name, repository, reference, manifest)
        return manifest

    # -- tables --------------------------------------------------------------------------------------------

    async def _keep(self, upstream: str, repository: str, reference: str | Digest, manifest: StoredManifest) -> None:
        try:
            await self._writer.run(
                self._manifests.put,
                _key(upstream, repository, manifest.digest),
                ManifestRecord(manifest.media_type, manifest.body),
            )
        except CacheError as exc:  # a pull is not to fail because it can not be remembered
            log.warning("manifest %s is not kept: %s", manifest.digest, exc)
            return
        if not isinstance(reference, Digest):
            head = ManifestHead(manifest.digest, manifest.media_type, len(manifest.body))
            await self._note_tag(upstream, repository, reference, head)

    async def _note_tag(self, upstream: str, repository: str, tag: str, head: ManifestHead) -> None:
        record = TagRecord(str(head.digest), head.media_type, head.size, self._clock())
        try:
            await self._writer.run(self._tags.put, _key(upstream, repository, tag), record)
        except CacheError as exc:
            log.warning("tag %s/%s:%s is not kept: %s", upstream, repository, tag, exc)

    def _stored(self, upstream: str, repository: str, digest: Digest) -> StoredManifest | None:
        try:
            record = self._manifests.get(_key(upstream, repository, digest))
        except CacheError as exc:
            log.warning("manifest %s is fetched again: %s", digest, exc)
            return None
        if record is None or Digest.of(record.body) != digest:
            return None
        return StoredManifest(digest, record.media_type, record.body)

    def _tag(self, upstream: str, repository: str, tag: str) -> TagRecord | None:
        try:
            return self._tags.get(_key(upstream, repository, tag))
        except CacheError as exc:
            log.warning("tag %s/%s:%s is asked for again: %s", upstream, repository, tag, exc)
            return None


def _key(upstream: str, repository: str, reference: str | Digest) -> str:
    separator = "@" if isinstance(reference, Digest) else ":"
    return f"{upstream}/{repository}{separator}{reference}"


def _read_head(digest: str | None, content_type: str | None, content_length: str | None) -> ManifestHead | None:
    """What a HEAD's headers say; ``None`` = not enough, or nothing that we would serve. Pure."""
    if digest is None or content_length is None or not is_known_type(content_type):
        return None
    if not (content_length.isascii() and content_length.isdigit()) or not 0 < int(content_length) <= MAX_MANIFEST_BYTES:
        return None
    try:
        parsed = Digest.parse(digest)
    except CacheError:
        return None
    return ManifestHead(parsed, (content_type or "").partition(";")[0].strip().lower(), int(content_length))


async def _read_body(upstream: str, response: aiohttp.ClientResponse) -> bytes:
    """The whole body, as it was meant. Raise ``UpstreamInvalidError``."""
    body = bytearray()
    try:
        while data := await response.content.readany():
            body += data
            if len(body) > MAX_MANIFEST_BYTES:
                raise UpstreamInvalidError(f"{upstream} sent a manifest of more than {MAX_MANIFEST_BYTES} bytes")
    except (aiohttp.ClientError, TimeoutError, OSError) as exc:
        raise BrokenAnswerError(f"{upstream} broke off a manifest: {str(exc) or 'timeout'}") from exc
    return decoded(bytes(body), response.headers.get("Content-Encoding"))
