from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fakes.api import Api, serve_api


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serve_api(tmp_path) as served:
        yield served
