"""A lazily mounted image is the tree that containerd unpacks: every entry, every attribute, every byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.images import ImageMaker
from harness.odd_images import IMAGES, IMPLIED
from harness.registry import Registry
from harness.stack import Stack
from harness.trees import both_trees, unexpected
from tools.compare_trees import compare

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.slow]


@pytest.fixture(scope="module")
def stack(module_lab: Path, registry: Registry) -> Iterator[Stack]:
    with Stack(module_lab, registry=registry) as stack:
        yield stack


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.timeout(600)
def test_the_tree_is_containerds(name: str, stack: Stack, images: ImageMaker, tmp_path: Path) -> None:
    """No difference in path, type, mode, owner, size, time, device, links, xattrs or content."""
    image = IMAGES[name](images)
    stack.proxy.warm(image)

    with both_trees(stack, image, tmp_path) as (theirs, ours):
        entries, differences = compare(theirs, ours)

    assert unexpected(differences, IMPLIED.get(name, set())) == []
    assert entries >= 4
