"""Names become images; images are remembered with everything a later re-ingest needs."""

from __future__ import annotations

import json

import pytest
from fakes.ingest_assembly import Parts
from fakes.ingest_parts import OCI_INDEX, OCI_MANIFEST, add_image, diff_id_of, layer_blob

from fastpull.cache.digest import Digest, chain_ids
from fastpull.proxy.errors import MalformedNameError, ManifestUnknownError
from fastpull.proxy.ingest.oci import ManifestError, PlatformMissingError
from fastpull.proxy.mirror.manifests import StoredManifest
from fastpull.proxy.references import Platform

LOW, HIGH = layer_blob(("a", b"1")), layer_blob(("b", b"2"))


def index_of(*images: tuple[StoredManifest, str]) -> bytes:
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [
                {
                    "mediaType": OCI_MANIFEST,
                    "digest": str(manifest.digest),
                    "size": len(manifest.body),
                    "platform": {"os": "linux", "architecture": architecture},
                }
                for manifest, architecture in images
            ],
        }
    ).encode()


async def test_a_name_is_resolved_to_layers_and_chain(parts: Parts) -> None:
    manifest = add_image(parts.mirror, [LOW, HIGH])

    record = await parts.images.resolve("registry.test/app:1", None)

    expected = chain_ids(Digest.parse(diff_id_of(blob)) for blob in (LOW, HIGH))
    assert record.names == ("registry.test/app:1",)
    assert record.manifest_digest == str(manifest.digest)
    assert record.chain_id == str(expected[-1])
    assert record.layer_digests == (str(Digest.of(LOW)), str(Digest.of(HIGH)))
    assert record.platform == "linux/amd64"
    assert parts.chains.diff_ids(str(expected[0])) == (diff_id_of(LOW),)
    assert parts.chains.diff_ids(str(expected[1])) == (diff_id_of(LOW), diff_id_of(HIGH))


async def test_only_the_platform_asked_for_is_looked_at(parts: Parts) -> None:
    amd = add_image(parts.mirror, [LOW], "amd")
    arm = add_image(parts.mirror, [HIGH], "arm", platform=("linux", "arm64"))
    parts.mirror.add_manifest(index_of((amd, "amd64"), (arm, "arm64")), OCI_INDEX, "both")

    record = await parts.images.resolve("registry.test/app:both", Platform.parse("linux/arm64"))

    assert record.platform == "linux/arm64"
    assert parts.images.count() == 1
    assert parts.mirror.asked[f"registry.test/app/{amd.digest}"] == 0


async def test_a_platform_that_is_not_there_is_said_with_what_is(parts: Parts) -> None:
    amd = add_image(parts.mirror, [LOW])
    parts.mirror.add_manifest(index_of((amd, "amd64")), OCI_INDEX, "one")

    with pytest.raises(PlatformMissingError, match="offered: linux/amd64"):
        await parts.images.resolve("registry.test/app:one", Platform.parse("linux/riscv64"))
    with pytest.raises(ManifestError, match="is for linux/amd64"):
        await parts.images.resolve("registry.test/app:1", Platform.parse("linux/riscv64"))


async def test_an_image_known_already_needs_no_second_look_at_its_config(parts: Parts) -> None:
    add_image(parts.mirror, [LOW])
    await parts.images.resolve("registry.test/app:1", None)
    opened = parts.mirror.opened.total()

    record = await parts.images.resolve("registry.test/app:1", None)

    assert record.chain_id
    assert parts.mirror.opened.total() == opened


async def test_all_names_of_an_image_are_kept_the_latest_first(parts: Parts) -> None:
    manifest = add_image(parts.mirror, [LOW], "1")
    parts.mirror.add_manifest(manifest.body, OCI_MANIFEST, "latest")
    await parts.images.resolve("registry.test/app:1", None)

    record = await parts.images.resolve("registry.test/app", None)

    assert record.names == ("registry.test/app:latest", "registry.test/app:1")
    assert [found.names for found in parts.images.named("registry.test/app:1")] == [record.names]


async def test_a_child_of_an_index_is_known_by_the_tag_of_the_index(parts: Parts) -> None:
    amd = add_image(parts.mirror, [LOW])
    parts.images.note_index("registry.test", "app", index_of((amd, "amd64")), "registry.test/app:stable")

    record = await parts.images.learn("registry.test", "app", amd)

    assert record is not None
    assert record.names == ("registry.test/app:stable",)


async def test_what_is_no_image_is_not_remembered(parts: Parts) -> None:
    chart = {"schemaVersion": 2, "config": {"mediaType": "application/vnd.cncf.helm.config.v1+json"}}
    body = json.dumps({**chart, "config": {**chart["config"], "digest": str(Digest.of(b"")), "size": 0}, "layers": []})
    manifest = parts.mirror.add_manifest(body.encode(), OCI_MANIFEST, "chart")

    assert await parts.images.learn("registry.test", "app", manifest) is None
    with pytest.raises(ManifestError, match="is no container image"):
        await parts.images.resolve("registry.test/app:chart", None)
    assert parts.images.count() == 0


async def test_an_image_without_layers_has_no_chain(parts: Parts) -> None:
    add_image(parts.mirror, [])

    assert (await parts.images.resolve("registry.test/app:1", None)).chain_id == ""


async def test_a_config_that_contradicts_the_manifest_is_refused(parts: Parts) -> None:
    add_image(parts.mirror, [LOW, HIGH], diff_ids=[diff_id_of(LOW)])

    with pytest.raises(ManifestError, match="1 layers, the manifest 2"):
        await parts.images.resolve("registry.test/app:1", None)


@pytest.mark.parametrize(
    ("name", "error"), [("registry.test/APP", MalformedNameError), ("registry.test/none:1", ManifestUnknownError)]
)
async def test_a_name_that_leads_nowhere_is_an_error(parts: Parts, name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await parts.images.resolve(name, None)


async def test_a_second_repository_with_the_same_image_becomes_a_source_too(parts: Parts) -> None:
    add_image(parts.mirror, [LOW], repository="one")
    manifest = add_image(parts.mirror, [LOW], repository="two")
    await parts.images.resolve("registry.test/one:1", None)
    await parts.images.learn("registry.test", "two", manifest)

    record = parts.layers.record(diff_id_of(LOW))

    assert record is not None
    assert [source.repository for source in record.sources] == ["two", "one"]
