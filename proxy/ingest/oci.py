"""Manifests, indexes and image configs, as far as an image's layers need them. Pure.

OCI image-spec: manifest.md, image-index.md, config.md; Docker's schema 2 differs only in media types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from fastpull.cache.digest import Digest
from fastpull.cache.errors import MalformedDigestError
from fastpull.image.errors import ImageError
from fastpull.proxy.references import Platform, choose_platform

T = TypeVar("T")

CONFIG_TYPES = frozenset({"application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"})
MAX_LAYERS = 1000  # containerd's overlayfs stops at about 500 lower directories
MAX_CONFIG_BYTES = 4 * 2**20


class ManifestError(ImageError):
    """A manifest, index or config that does not describe an image which can be run."""


class PlatformMissingError(ManifestError):
    """The index holds no image for the platform."""


@dataclass(frozen=True, slots=True)
class LayerDescriptor:
    digest: Digest
    media_type: str
    blob_bytes: int


@dataclass(frozen=True, slots=True)
class ImageManifest:
    """One image: its config and its layers, lowest first."""

    config: LayerDescriptor
    layers: tuple[LayerDescriptor, ...]


@dataclass(frozen=True, slots=True)
class ImageConfig:
    diff_ids: tuple[Digest, ...]
    platform: Platform


class _Platform(msgspec.Struct):
    os: str = ""
    architecture: str = ""
    variant: str = ""


class _Descriptor(msgspec.Struct, rename="camel"):
    digest: str
    size: int
    media_type: str = ""
    platform: _Platform | None = None


class _Manifest(msgspec.Struct, rename="camel"):
    media_type: str = ""
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None


class _RootFs(msgspec.Struct):
    diff_ids: list[str] = []


class _Config(msgspec.Struct):
    os: str = "linux"
    architecture: str = ""
    variant: str = ""
    rootfs: _RootFs = msgspec.field(default_factory=_RootFs)


def parse_manifest(body: bytes) -> ImageManifest | None:
    """``None`` for what is valid but no image: an index, an artifact, a chart. Raise ``ManifestError``."""
    manifest = _decode(body, _Manifest, "manifest")
    if manifest.config is None or manifest.layers is None or manifest.config.media_type not in CONFIG_TYPES:
        return None
    if len(manifest.layers) > MAX_LAYERS:
        raise ManifestError(f"the manifest names {len(manifest.layers)} layers; at most {MAX_LAYERS} are accepted")
    return ImageManifest(_descriptor(manifest.config), tuple(_descriptor(layer) for layer in manifest.layers))


def is_index(body: bytes) -> bool:
    """Raise ``ManifestError`` for bytes that are no manifest at all."""
    return _decode(body, _Manifest, "manifest").manifests is not None


def choose(body: bytes, wanted: Platform) -> Digest:
    """The digest of the index's image for a platform, as containerd would choose it.

    Raise ``PlatformMissingError`` with the platforms that there are.
    """
    manifests = _decode(body, _Manifest, "index").manifests or []
    runnable = [
        (Platform(found.os, found.architecture, found.variant), descriptor)
        for descriptor in manifests
        if (found := descriptor.platform) is not None and found.os not in ("", "unknown")  # attestations: unknown
    ]
    place = choose_platform(wanted, [platform for platform, _ in runnable])
    if place is None:
        offered = ", ".join(sorted({str(platform.normalised()) for platform, _ in runnable})) or "none"
        raise PlatformMissingError(f"the index holds no image for {wanted}; offered: {offered}")
    return _digest(runnable[place][1].digest)


def children(body: bytes) -> list[Digest]:
    """The images that an index names. Raise ``ManifestError``."""
    return [_digest(child.digest) for child in _decode(body, _Manifest, "index").manifests or []]


def parse_config(body: bytes) -> ImageConfig:
    """Raise ``ManifestError`` for a config without usable ``rootfs.diff_ids``."""
    config = _decode(body, _Config, "image config")
    return ImageConfig(
        diff_ids=tuple(_digest(text) for text in config.rootfs.diff_ids),
        platform=Platform(config.os, config.architecture, config.variant).normalised(),
    )


def pair_layers(diff_ids: Sequence[Digest], layers: Sequence[LayerDescriptor]) -> list[tuple[Digest, LayerDescriptor]]:
    """Layer i of the manifest unpacks to diffID i of the config. Raise ``ManifestError`` when the counts differ."""
    if len(diff_ids) != len(layers):
        raise ManifestError(f"the config names {len(diff_ids)} layers, the manifest {len(layers)}")
    return list(zip(diff_ids, layers, strict=True))


def _decode(body: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ManifestError(f"unreadable {what}: {exc}") from exc


def _descriptor(raw: _Descriptor) -> LayerDescriptor:
    if raw.size < 0:
        raise ManifestError(f"a descriptor of {raw.size} bytes")
    return LayerDescriptor(_digest(raw.digest), raw.media_type, raw.size)


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except MalformedDigestError as exc:
        raise ManifestError(str(exc)) from exc
