"""The demo's AI image, gigabytes of real packages, is the same tree lazily mounted as unpacked."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from harness.oci import Image
from harness.registry import Registry
from harness.stack import Stack
from harness.trees import both_trees, unexpected
from tools.compare_trees import compare

sys.path.append(str(Path(__file__).parents[2] / "deploy/demo"))

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.slow]

# The demo's own place: who has run it does not build the image again.
CACHE = Path("/var/cache/fastpull-demo")


@pytest.mark.timeout(2400)
def test_the_tree_of_the_demo_image_is_containerds(registry: Registry, lab: Path, tmp_path: Path) -> None:
    """More than 1 GB and 30,000 entries without a difference."""
    from build_image import build

    layout = build(CACHE)
    image = registry.push(Image(layout, "v1", manifest_digest="", layers=()), "demo/ai:v1")
    with Stack(lab, registry=registry) as stack:
        summary = stack.proxy.warm(image, seconds=900)
        with both_trees(stack, image, tmp_path) as (theirs, ours):
            entries, differences = compare(theirs, ours)

    assert unexpected(differences, set()) == []
    assert entries > 30_000
    assert summary["content_bytes"] > 1_000_000_000
