"""The running server, on its own port, until it is told to stop."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from fastpull.config.proxy import ListenSettings, ProxySettings
from fastpull.proxy.server import run_server


@pytest.mark.parametrize(("size", "status"), [(63_000, b"200"), (70_000, b"400")])
async def test_headers_of_64_kib_are_read_and_longer_ones_refused(size: int, status: bytes, tmp_path: Path) -> None:
    """Tokens of a single sign-on take several times the 8 KiB of aiohttp's own limit."""
    first_lines: list[bytes] = []

    async def started(address: tuple[str, int]) -> None:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + b"t" * size + b"\r\n\r\n")
        first_lines.append(await asyncio.wait_for(reader.readline(), 30))
        writer.close()
        os.kill(os.getpid(), signal.SIGTERM)

    await run_server(ProxySettings(data_dir=tmp_path, listen=ListenSettings(port=0)), started=started)

    assert first_lines[0].split()[1] == status
