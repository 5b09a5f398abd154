"""Manifests, indexes and configs as they come from registries, and as they come from elsewhere."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastpull.cache.digest import Digest
from fastpull.proxy.ingest.oci import (
    ImageManifest,
    LayerDescriptor,
    ManifestError,
    PlatformMissingError,
    children,
    choose,
    is_index,
    pair_layers,
    parse_config,
    parse_manifest,
)
from fastpull.proxy.references import Platform

A, B, C = ("sha256:" + letter * 64 for letter in "abc")
DOCKER = {
    "schemaVersion": 2,
    "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
    "config": {"mediaType": "application/vnd.docker.container.image.v1+json", "size": 7, "digest": A},
    "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": 9, "digest": B}],
}
INDEX = {
    "schemaVersion": 2,
    "manifests": [
        {"digest": A, "size": 1, "platform": {"os": "linux", "architecture": "amd64"}},
        {"digest": B, "size": 1, "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
        {"digest": C, "size": 1, "platform": {"os": "unknown", "architecture": "unknown"}},
    ],
}


def test_a_docker_manifest_is_read() -> None:
    assert parse_manifest(json.dumps(DOCKER).encode()) == ImageManifest(
        LayerDescriptor(Digest.parse(A), "application/vnd.docker.container.image.v1+json", 7),
        (LayerDescriptor(Digest.parse(B), "application/vnd.docker.image.rootfs.diff.tar.gzip", 9),),
    )


@pytest.mark.parametrize(
    "other",
    [
        INDEX,
        {**DOCKER, "config": {**DOCKER["config"], "mediaType": "application/vnd.cncf.helm.config.v1+json"}},
        {"schemaVersion": 2},
    ],
)
def test_what_is_no_image_is_none(other: object) -> None:
    assert parse_manifest(json.dumps(other).encode()) is None


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"<html>",
        b"[]",
        b"\xff\xfe",
        json.dumps({**DOCKER, "layers": [{"digest": "md5:1", "size": 1}]}).encode(),
        json.dumps({**DOCKER, "layers": [{"digest": A, "size": -1}]}).encode(),
        json.dumps({**DOCKER, "layers": [{"digest": A, "size": "1"}]}).encode(),
        json.dumps({**DOCKER, "layers": [DOCKER["layers"][0]] * 1001}).encode(),  # type: ignore[index]
    ],
)
def test_a_broken_manifest_is_refused(broken: bytes) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(broken)


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_nothing_but_the_declared_error_is_raised(body: bytes) -> None:
    for parse in (parse_manifest, is_index, children, parse_config, lambda data: choose(data, Platform("a", "b"))):
        with contextlib.suppress(ManifestError):
            parse(body)


@pytest.mark.parametrize(("platform", "digest"), [("linux/amd64", A), ("linux/arm64", B), ("linux/arm64/v8", B)])
def test_an_index_gives_the_image_of_the_platform(platform: str, digest: str) -> None:
    assert choose(json.dumps(INDEX).encode(), Platform.parse(platform)) == Digest.parse(digest)


def test_an_index_without_the_platform_says_what_it_has() -> None:
    with pytest.raises(PlatformMissingError, match=r"linux/s390x.*linux/amd64, linux/arm64"):
        choose(json.dumps(INDEX).encode(), Platform.parse("linux/s390x"))


def test_an_index_is_told_from_an_image() -> None:
    assert is_index(json.dumps(INDEX).encode())
    assert not is_index(json.dumps(DOCKER).encode())
    assert children(json.dumps(INDEX).encode()) == [Digest.parse(text) for text in (A, B, C)]


def test_a_config_gives_diff_ids_and_platform() -> None:
    config = parse_config(
        json.dumps({"os": "linux", "architecture": "x86_64", "rootfs": {"type": "layers", "diff_ids": [A, B]}}).encode()
    )

    assert config.diff_ids == (Digest.parse(A), Digest.parse(B))
    assert str(config.platform) == "linux/amd64"


def test_layers_and_diff_ids_go_together_or_not_at_all() -> None:
    layer = LayerDescriptor(Digest.parse(B), "", 1)

    assert pair_layers([Digest.parse(A)], [layer]) == [(Digest.parse(A), layer)]
    with pytest.raises(ManifestError, match="2 layers, the manifest 1"):
        pair_layers([Digest.parse(A)] * 2, [layer])
