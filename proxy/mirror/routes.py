"""``/v2``: the pull half of the OCI distribution API."""

from __future__ import annotations

import logging

from aiohttp import web

from fastpull.cache.digest import Digest
from fastpull.cache.errors import MalformedDigestError
from fastpull.proxy import metrics
from fastpull.proxy.errors import (
    MalformedDigestInPathError,
    MirrorError,
    ReadOnlyError,
    RepositoryUnknownError,
    UpstreamForbiddenError,
)
from fastpull.proxy.mirror.answers import common_headers, error_response, warning
from fastpull.proxy.mirror.blobs import BlobSource
from fastpull.proxy.mirror.listings import listing_query
from fastpull.proxy.mirror.naming import Kind, Target, parse_target
from fastpull.proxy.mirror.service import ManifestSeen, Mirror
from fastpull.proxy.references import parse_manifest_reference
from fastpull.proxy.upstream.via import VIA, is_our_own

log = logging.getLogger(__name__)

MIRROR = web.AppKey("mirror", Mirror)
ROUTES = web.RouteTableDef()

_MANIFEST_BYTES = metrics.CLIENT_BYTES.labels("manifest")


@ROUTES.get("/v2")
@ROUTES.get("/v2/")
async def version(_request: web.Request) -> web.Response:
    """distribution-spec, end-1: we speak the API, and demand no login."""
    return web.Response(body=b"{}", headers=common_headers(None), content_type="application/json")


@ROUTES.get("/v2/{path:.+}")
async def pull(request: web.Request) -> web.StreamResponse:
    """Manifests, blobs, tags and referrers. Every failure is an OCI error that lets containerd go elsewhere."""
    namespace = request.query.get("ns")
    mirror = request.app[MIRROR]
    route = upstream = "none"
    try:
        target = parse_target(request.match_info["path"], namespace, mirror.settings.mirror.default_upstream)
        if target is None:
            raise RepositoryUnknownError(f"{request.path[:200]} is nothing that can be pulled")
        route = target.kind.value
        mirror.upstreams.get(target.upstream)
        upstream = target.upstream if mirror.upstreams.knows(target.upstream) else "other"
        if is_our_own(request.headers.get(VIA)):
            raise UpstreamForbiddenError(f"upstream {target.upstream} leads back to this proxy")
        response, outcome = await _ANSWERS[target.kind](request, mirror, target, namespace)
    except MirrorError as exc:
        response, outcome = error_response(exc, namespace), "error"
        if response.status >= 500:
            log.warning("%s %s: %s", request.method, request.rel_url, exc)
    metrics.REQUESTS.labels(route, outcome, upstream).inc()
    return response


@ROUTES.route("*", "/v2/{path:.*}")
async def push(_request: web.Request) -> web.Response:
    """Uploads and deletes: 405, as distribution-spec has it for what a registry does not support."""
    return error_response(ReadOnlyError("this is a pull-through mirror; push to the registry itself"))


async def _manifest(
    request: web.Request, mirror: Mirror, target: Target, namespace: str | None
) -> tuple[web.StreamResponse, str]:
    reference = parse_manifest_reference(target.reference)
    if request.method == "HEAD":
        head = await mirror.manifests.head(target.upstream, target.repository, reference)
        headers = _manifest_headers(namespace, head.digest, head.stale_reason)
        headers["Content-Length"] = str(head.size)
        return web.Response(headers=headers, content_type=head.media_type), _freshness(head.stale_reason)
    manifest = await mirror.manifests.get(target.upstream, target.repository, reference)
    mirror.on_manifest(ManifestSeen(target.upstream, target.repository, str(reference), manifest))
    headers = _manifest_headers(namespace, manifest.digest, manifest.stale_reason)
    _MANIFEST_BYTES.inc(len(manifest.body))
    response = web.Response(body=manifest.body, headers=headers, content_type=manifest.media_type)
    return response, _freshness(manifest.stale_reason)


async def _blob(
    request: web.Request, mirror: Mirror, target: Target, namespace: str | None
) -> tuple[web.StreamResponse, str]:
    source = BlobSource(target.upstream, target.repository, _digest(target.reference))
    if request.method == "HEAD":
        return await mirror.blob_answers.head(source, namespace)
    return await mirror.blob_answers.get(request, source, namespace)


async def _listing(
    request: web.Request, mirror: Mirror, target: Target, namespace: str | None
) -> tuple[web.StreamResponse, str]:
    path = "tags/list" if target.kind is Kind.TAGS else f"referrers/{_digest(target.reference)}"
    query = listing_query(dict(request.query))
    listing = await mirror.listings.get(target.upstream, target.repository, path, query)
    headers = common_headers(namespace)
    if listing.next_query is not None:
        ns = f"&ns={namespace}" if namespace else ""
        headers["Link"] = f'<{request.rel_url.raw_path}?{listing.next_query}{ns}>; rel="next"'
    if listing.filters_applied is not None:
        headers["OCI-Filters-Applied"] = listing.filters_applied
    return web.Response(body=listing.body, headers=headers, content_type=listing.content_type), "hit"


_ANSWERS = {
    Kind.MANIFEST: _manifest,
    Kind.BLOB: _blob,
    Kind.TAGS: _listing,
    Kind.REFERRERS: _listing,
}


def _manifest_headers(namespace: str | None, digest: Digest, stale_reason: str | None) -> dict[str, str]:
    headers = common_headers(namespace)
    headers["Docker-Content-Digest"] = str(digest)
    headers["ETag"] = f'"{digest}"'
    if stale_reason is not None:
        headers["Warning"] = warning(f"stale: {stale_reason}")
    return headers


def _freshness(stale_reason: str | None) -> str:
    return "hit" if stale_reason is None else "stale"


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except MalformedDigestError as exc:
        raise MalformedDigestInPathError(str(exc)) from exc
