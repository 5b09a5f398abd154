"""The access log is one JSON object a line, and holds no secret."""

from __future__ import annotations

import json
import logging

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from fastpull.proxy.access_log import JsonAccessLogger


async def test_a_request_is_one_line_of_json_without_its_headers(caplog: pytest.LogCaptureFixture) -> None:
    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="hello")

    app = web.Application()
    app.router.add_get("/v2/app/manifests/1", hello)
    server = TestServer(app)
    with caplog.at_level(logging.INFO, logger="aiohttp.access"):
        await server.start_server(access_log_class=JsonAccessLogger, access_log=logging.getLogger("aiohttp.access"))
        async with TestClient(server) as client:
            await client.get(
                "/v2/app/manifests/1?ns=docker.io&token=hunter2",
                headers={"Authorization": "Basic c2VjcmV0", "Range": "bytes=0-", "User-Agent": "containerd/2.1"},
            )

    (line,) = [record.getMessage() for record in caplog.records if record.name == "aiohttp.access"]
    entry = json.loads(line)
    assert (entry["method"], entry["path"], entry["ns"]) == ("GET", "/v2/app/manifests/1", "docker.io")
    assert (entry["status"], entry["range"], entry["agent"]) == (200, "bytes=0-", "containerd/2.1")
    assert entry["bytes"] >= len("hello")
    assert "hunter2" not in line
    assert "c2VjcmV0" not in line
