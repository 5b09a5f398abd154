"""What a manifest is, and what only looks like one. Pure (OCI image-spec; Docker image manifest v2, schema 2)."""

from __future__ import annotations

import zlib
from typing import Any

import msgspec

from fastpull.proxy.errors import UpstreamInvalidError
from fastpull.proxy.upstream.foreign_json import read_json

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"

IMAGE_MANIFESTS = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEXES = frozenset({OCI_INDEX, DOCKER_LIST})
ACCEPT = ", ".join((OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST))

MAX_MANIFEST_BYTES = 4 * 2**20  # distribution-spec: registries should take 4 MiB; containerd refuses 4.2


class _Outline(msgspec.Struct):
    schemaVersion: int = 0  # noqa: N815 - the field's name
    mediaType: str = ""  # noqa: N815
    config: dict[str, Any] | None = None
    layers: list[Any] | None = None
    manifests: list[Any] | None = None


def manifest_type(body: bytes, content_type: str | None = None) -> str | None:
    """The media type of a manifest; ``None`` = it is none (an HTML login page, an error, schema 1, a config).

    The body decides whether it is a manifest, its own ``mediaType`` which; the header only where the body
    does not say. So a registry that answers ``application/json`` can be used, and a portal's page never is.
    """
    if len(body) > MAX_MANIFEST_BYTES:
        return None
    outline = read_json(body, _Outline)
    if outline is None or outline.schemaVersion != 2:
        return None
    is_index = outline.manifests is not None and outline.layers is None
    is_image = outline.layers is not None and outline.config is not None and outline.manifests is None
    if not (is_index or is_image):
        return None
    family = INDEXES if is_index else IMAGE_MANIFESTS
    header = (content_type or "").partition(";")[0].strip().lower()
    for claimed in (outline.mediaType, header):
        if claimed in family:
            return claimed
    if outline.mediaType:
        return None  # it says that it is something else
    return OCI_INDEX if is_index else OCI_MANIFEST


def is_known_type(content_type: str | None) -> bool:
    return (content_type or "").partition(";")[0].strip().lower() in IMAGE_MANIFESTS | INDEXES


def decoded(body: bytes, content_encoding: str | None) -> bytes:
    """Undo a Content-Encoding that we did not ask for. Raise ``UpstreamInvalidError``.

    Some stores put ``Content-Encoding: gzip`` on objects that are sent as they are; those stay as they are.
    """
    encoding = (content_encoding or "").strip().lower()
    if encoding in ("", "identity") or body[:1] == b"{":
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise UpstreamInvalidError(f"manifest with Content-Encoding {encoding[:40]!r}, which was not asked for")
    inflate = zlib.decompressobj(wbits=32 + zlib.MAX_WBITS)
    try:
        plain = inflate.decompress(body, MAX_MANIFEST_BYTES + 1)
    except zlib.error as exc:
        raise UpstreamInvalidError(f"manifest with broken Content-Encoding: {exc}") from exc
    if not inflate.eof or len(plain) > MAX_MANIFEST_BYTES:
        raise UpstreamInvalidError("manifest with cut or too long Content-Encoding")
    return plain
