"""What all tests share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

pytest_plugins = ["harness.fault_rows"]


@pytest.fixture(autouse=True)
def _leaks_surface_here() -> Iterator[None]:
    """Collect garbage after each test, so that unclosed resources are reported where they leak."""
    yield
    gc.collect(0)
