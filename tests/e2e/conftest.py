"""Real parts, started once where tests can share them. Every test cleans up what it starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness.images import ImageMaker
from harness.lab import short_directory
from harness.registry import Registry

NEEDED = ("containerd", "runc", "ctr", "ctr-remote", "docker-registry", "skopeo", "gcc")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need root or a program are skipped without it, each with the reason."""
    missing = [name for name in NEEDED if shutil.which(name) is None]
    reason = "needs root" if os.geteuid() else f"needs {', '.join(missing)}" if missing else ""
    here = Path(__file__).parent
    for item in items:
        if reason and here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def lab() -> Iterator[Path]:
    """A directory of this test's own."""
    with short_directory() as path:
        yield path


@pytest.fixture(scope="module")
def module_lab() -> Iterator[Path]:
    with short_directory() as path:
        yield path


@pytest.fixture(scope="session")
def registry() -> Iterator[Registry]:
    with short_directory() as path, Registry(path) as registry:
        yield registry


@pytest.fixture(scope="session")
def images(registry: Registry) -> Iterator[ImageMaker]:
    with short_directory() as path:
        yield ImageMaker(path, registry)


@pytest.fixture(scope="session")
def sandbox_image(images: ImageMaker) -> str:
    """The image of the sandbox container: its program sleeps."""
    return images.push()
