"""The client's small requests: failover, limits, and errors that say what to do."""

from __future__ import annotations

import pytest
from aiohttp import web
from fakes.layers import Content, layers
from fakes.node_api import FakeProxy

from fastpull.cache.digest import Digest
from fastpull.cache.wire import Trace
from fastpull.config.errors import ConfigError
from fastpull.config.node import NodeSettings, TlsSettings
from fastpull.fuse_client.errors import ProxyAnswerError, ProxyProtocolError, ProxyUnreachableError
from fastpull.fuse_client.fetch import client as client_module
from fastpull.fuse_client.fetch.client import ProxyClient

NOBODY = "http://127.0.0.1:9"
UNKNOWN = Digest("ee" * 32)


def settings(*urls: str) -> NodeSettings:
    return NodeSettings(proxies=urls)


async def test_small_requests_go_to_the_next_proxy() -> None:
    """State, plan, image, artifacts and traces do not depend on the first proxy."""
    proxy = FakeProxy()
    content = Content()
    chain = proxy.add_image("demo", layers([content.file(b"a", b"x" * 10000)]), content.chunks)
    async with proxy.serving(), ProxyClient.open(settings(NOBODY, proxy.url)) as client:
        assert (await client.chain_state(chain)).state == "ready"
        assert (await client.chain_state(UNKNOWN)).state == "unknown"
        assert (await client.image("demo")).chain_id == str(chain)
        plan = await client.plan(chain)
        assert plan is not None
        assert plan.chunks == ()
        encoding, _raw = await client.artifact(chain, "chunkmap", 1 << 20)
        assert encoding == "zstd"
        await client.send_trace(Trace(chain_id=str(chain)))
    assert len(proxy.traces) == 1


async def test_nobody_there_is_said_with_the_remedy() -> None:
    """The first thing that goes wrong at a new site."""
    async with ProxyClient.open(settings(NOBODY)) as client:
        with pytest.raises(ProxyUnreachableError, match=r"127\.0\.0\.1:9") as raised:
            await client.chain_state(UNKNOWN)
        assert "fastpull-proxy serve" in raised.value.remedy
        with pytest.raises(ProxyUnreachableError):  # now known to be down: no connection is tried
            await client.chain_state(UNKNOWN)


async def test_a_refusal_keeps_the_proxys_words() -> None:
    """What the proxy says, and its remedy, reach the operator."""
    proxy = FakeProxy()
    async with proxy.serving(), ProxyClient.open(settings(proxy.url)) as client:
        with pytest.raises(ProxyAnswerError, match="no such image") as raised:
            await client.image("nothing")
        assert (raised.value.status, raised.value.remedy) == (404, "check its name")


async def test_an_answer_beyond_its_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer makes the node use more memory than the limit."""
    monkeypatch.setattr(client_module, "MESSAGE_BYTES", 10)
    proxy = FakeProxy()
    content = Content()
    chain = proxy.add_image("demo", layers([content.file(b"a", b"x" * 10000)]), content.chunks)
    async with proxy.serving(), ProxyClient.open(settings(proxy.url)) as client:
        with pytest.raises(ProxyProtocolError, match="more than 16 bytes"):
            await client.artifact(chain, "bootstrap", 16)


async def test_what_is_no_proxy_is_recognised() -> None:
    """A web server that answers 200 to everything is not taken for one."""

    async def hello(_request: web.Request) -> web.Response:
        return web.Response(text="<html>hello</html>")

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with ProxyClient.open(settings(f"http://127.0.0.1:{runner.addresses[0][1]}")) as client:
            with pytest.raises(ProxyProtocolError):
                await client.chain_state(UNKNOWN)
            with pytest.raises(ProxyProtocolError, match="not application/vnd"):
                async for _ in client.chunks(UNKNOWN, []):
                    pass
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        pytest.param(NodeSettings(proxies=()), "at least one address", id="none"),
        pytest.param(NodeSettings(proxies=("proxy:5050",)), "is no address", id="no-scheme"),
        pytest.param(NodeSettings(proxies=("ftp://proxy",)), "is no address", id="other-scheme"),
        pytest.param(NodeSettings(tls=TlsSettings(ca="/nonexistent")), "tls:", id="no-ca"),  # type: ignore[arg-type]
    ],
)
async def test_wrong_settings_are_found_at_the_start(wrong: NodeSettings, says: str) -> None:
    """Not with the first request."""
    with pytest.raises(ConfigError, match=says):
        async with ProxyClient.open(wrong):
            pass
