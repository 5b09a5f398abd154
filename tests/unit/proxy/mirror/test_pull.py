"""What clients of /v2 get when nothing goes wrong."""

import asyncio
import os
from pathlib import Path

import pytest
from fakes.mirror import running_mirror, settings_for, until
from fakes.registry import FakeRegistry

BLOB = os.urandom(3_000_001)


async def test_an_image_is_pulled_by_tag(tmp_path: Path) -> None:
    """Tag, manifest, config and layers come verbatim, and are asked of upstream once."""
    async with FakeRegistry() as registry:
        digest = registry.add_image("library/debian", "12", BLOB)
        async with running_mirror(settings_for(tmp_path, {"docker.io": registry})) as mirror:
            for _ in range(2):
                head = await mirror.request("HEAD", "library/debian/manifests/12?ns=docker.io")
                assert head.status == 200
                assert head.headers["Docker-Content-Digest"] == digest
                assert head.headers["OCI-Namespace"] == "docker.io"
                got = await mirror.get(f"library/debian/manifests/{digest}?ns=docker.io")
                assert got.body == registry.manifests["library/debian", "12"][1]
                assert int(head.headers["Content-Length"]) == len(got.body)
                for blob, data in registry.blobs.items():
                    assert (await mirror.get(f"library/debian/blobs/{blob}?ns=docker.io")).body == data
        assert registry.count("manifest", "GET") == 1
        assert registry.count("manifest", "HEAD") == 1
        assert registry.body_bytes == sum(map(len, registry.blobs.values())) + len(got.body)
    assert [str(seen.manifest.digest) for seen in mirror.manifests_seen] == [digest, digest]


@pytest.mark.parametrize("range_bytes", [64 * 1024, 1 << 20, 1 << 23])
async def test_a_cold_blob_comes_in_parallel_ranges(tmp_path: Path, range_bytes: int) -> None:
    """Whatever the size of a piece, upstream sends each byte once and the client gets them in order."""
    async with FakeRegistry() as registry:
        digest = registry.add_blob(BLOB)
        async with running_mirror(settings_for(tmp_path, {"r.test": registry}, range_bytes=range_bytes)) as mirror:
            got = await mirror.get(f"app/blobs/{digest}?ns=r.test")
            assert got.body == BLOB
            await until(lambda: mirror.blobs_on_disk() == {digest: BLOB})
        assert registry.body_bytes == len(BLOB)


async def test_many_clients_share_one_transfer(tmp_path: Path) -> None:
    """Fifty readers of one cold blob cost upstream one."""
    async with FakeRegistry(bytes_per_second=20e6) as registry:
        digest = registry.add_blob(BLOB)
        async with running_mirror(settings_for(tmp_path, {"r.test": registry})) as mirror:
            answers = await asyncio.gather(*(mirror.get(f"app/blobs/{digest}?ns=r.test") for _ in range(50)))
            assert all(answer.body == BLOB for answer in answers)
        assert registry.body_bytes == len(BLOB)
