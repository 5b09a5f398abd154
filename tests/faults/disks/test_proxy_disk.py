"""The disk of the proxy is full, or fails: nodes that ask get their chunks, sooner or later."""

from __future__ import annotations

import http.client
import os
import random
import urllib.request
from pathlib import Path

import pytest
from harness.failing_disk import FailingDisk
from harness.fault_rows import Seen
from harness.oci import Image, OciLayout, file
from harness.proxy import Proxy
from harness.registry import Registry
from harness.waiting import until

from fastpull.cache.digest import Digest

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

DATA = random.Random(9).randbytes(6 << 20)


def made(root: Path) -> Image:
    layout = OciLayout(root / "layout")
    return layout.add_image("app:v1", [layout.add_layer([file("big", DATA)])])


def proxy_on(root: Path, disk: FailingDisk, registry: Registry) -> Proxy:
    proxy = Proxy(root / "proxy", [registry])
    (disk.path / "data").mkdir()
    (root / "proxy" / "data").symlink_to(disk.path / "data")
    return proxy


def device(proxy: Proxy, image: Image) -> bytes:
    """All bytes of the image's files, each verified by the proxy."""
    url = f"{proxy.url}/v1/chains/{image.chain_ids[-1]}/device"
    with urllib.request.urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


@pytest.mark.fault(
    "proxy disk: EIO on reads of chunks and blobs",
    done="everything ingested and forgotten by the page cache; the disk fails every read, then works again",
    promised="requests fail or are served from upstream, the proxy does not die; right bytes again once the disk works",
)
def test_a_disk_that_can_not_be_read_is_no_death(root: Path, disk: FailingDisk, seen: Seen) -> None:
    """No wrong byte meanwhile, and nothing to do for anybody afterwards."""
    image = made(root)
    with Registry(root / "registry") as registry:
        name = registry.push(image, "app:v1")
        with proxy_on(root, disk, registry) as proxy:
            proxy.warm(name)
            right = device(proxy, image)
            proxy.stop()
            proxy.start()
            pid = proxy.process.pid
            disk.forget("data/chunks/*.chunks")
            disk.forget("data/blobs/**/*")
            failed = 0
            with disk.failing("reads"):
                for _ in range(3):
                    try:
                        assert device(proxy, image) == right
                    except (OSError, http.client.HTTPException):
                        failed += 1
                assert proxy.is_ready() or proxy.status_of("/healthz")

            def serves() -> bool:
                return device(proxy, image) == right

            until(serves, "the right bytes are back", ignore=(OSError, http.client.HTTPException), every=0.5)
            assert proxy.process.pid == pid
            assert proxy.process.is_running, proxy.process.log_tail()
            seen(f"{failed} of 3 requests failed meanwhile, same process")


@pytest.mark.fault(
    "proxy disk: full",
    done="others fill the disk of chunks and blobs before an image is pulled, then leave",
    promised="the pull goes on uncached, the ingest fails with the reason; it works when there is room",
)
def test_a_full_disk_is_a_mirror_that_keeps_nothing(root: Path, disk: FailingDisk, seen: Seen) -> None:
    """containerd pulls as always meanwhile."""
    image = made(root)
    with Registry(root / "registry") as registry:
        name = registry.push(image, "app:v1")
        with proxy_on(root, disk, registry) as proxy:
            ballast = disk.path / "ballast"
            with ballast.open("wb", buffering=0) as file_:
                try:
                    while file_.write(bytes(1 << 20)):
                        pass
                except OSError:
                    pass
            (layer,) = image.layers
            with urllib.request.urlopen(f"{proxy.url}/v2/app/blobs/{layer.digest}?ns={registry.host}") as answer:
                assert str(Digest.of(answer.read())) == layer.digest
            with pytest.raises(AssertionError, match=r"remedy.*free disk space"):
                proxy.warm(name)
            ballast.unlink()

            def is_indexed() -> bool:
                return bool(proxy.warm(name))

            until(is_indexed, "the image is indexed", ignore=(AssertionError,), every=2)
            assert DATA in device(proxy, image)
            seen("pulled uncached, the ingest failed and named the remedy, then it worked")
