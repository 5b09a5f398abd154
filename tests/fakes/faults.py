"""What can go wrong at a registry, one class or function each. For ``FakeRegistry.script``."""

from __future__ import annotations

import asyncio
import gzip
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from aiohttp import web
from fakes.registry import Answer, FakeRegistry, serve


@dataclass(frozen=True)
class CutAfter:
    """The right head, so many bytes, then the connection is closed."""

    count: int
    reset: bool = False  # with RST instead of FIN

    async def __call__(self, request: web.Request, answer: Answer, registry: FakeRegistry) -> web.StreamResponse:
        response = await _head(request, answer)
        await registry.send(response, answer.body[: self.count])
        await _close(request, reset=self.reset)
        return response


@dataclass(frozen=True)
class CloseBeforeHead:
    """The request is read and the connection closed."""

    reset: bool = False

    async def __call__(self, request: web.Request, answer: Answer, registry: FakeRegistry) -> web.StreamResponse:
        await _close(request, reset=self.reset)
        return web.Response()


@dataclass(frozen=True)
class StallAfter:
    """So many bytes, then silence; with ``None`` not even a head."""

    count: int | None

    async def __call__(self, request: web.Request, answer: Answer, registry: FakeRegistry) -> web.StreamResponse:
        if self.count is None:
            await registry.released.wait()
            return web.Response(status=500)
        response = await _head(request, answer)
        await registry.send(response, answer.body[: self.count])
        await registry.released.wait()
        await _close(request, reset=False)
        return response


@dataclass(frozen=True)
class FlipByte:
    """One wrong bit, at this offset of the answer."""

    offset: int

    async def __call__(self, request: web.Request, answer: Answer, registry: FakeRegistry) -> web.StreamResponse:
        body = bytearray(answer.body)
        if body:
            body[self.offset % len(body)] ^= 1
        return await serve(request, replace(answer, body=bytes(body)), registry)


@dataclass(frozen=True)
class Status:
    """Another status, with headers and a body."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    async def __call__(self, request: web.Request, answer: Answer, registry: FakeRegistry) -> web.StreamResponse:
        return web.Response(status=self.status, headers=self.headers, body=self.body)


@dataclass(frozen=True)
class WithHeaders:
    """The right body, with other headers."""

    headers: Mapping[str, str]
    without: tuple[str, ...] = ()

    async def __call__(self, request: web.Request, answer: Answer, registry: FakeRegistry) -> web.StreamResponse:
        headers = {**answer.headers, **self.headers}
        for name in self.without:
            headers.pop(name, None)
        return await serve(request, replace(answer, headers=headers), registry)


@dataclass(frozen=True)
class IgnoreRange:
    """200 and the whole blob, whatever was asked; ``cut_after`` bytes of it if given."""

    cut_after: int | None = None
    encoding: str = ""  # a Content-Encoding: "gzip" encodes, "label" only says so

    async def __call__(self, request: web.Request, answer: Answer, registry: FakeRegistry) -> web.StreamResponse:
        data = registry.blobs[request.path.rpartition("/")[2]]
        headers = {"Content-Type": "application/octet-stream"}
        if self.encoding:
            headers["Content-Encoding"] = "gzip"
        if self.encoding == "gzip":
            data = gzip.compress(data, 1)
        whole = Answer(200, headers, data)
        if self.cut_after is not None:
            return await CutAfter(self.cut_after)(request, whole, registry)
        return await serve(request, whole, registry)


@dataclass(frozen=True)
class WithoutLength:
    """200, no Content-Length, and the end of the connection as the end of the body."""

    count: int | None = None  # bytes sent, None = all

    async def __call__(self, request: web.Request, answer: Answer, registry: FakeRegistry) -> web.StreamResponse:
        data = registry.blobs[request.path.rpartition("/")[2]][: self.count]
        assert request.transport is not None
        request.transport.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + data)
        request.transport.close()
        return web.Response()


@dataclass(frozen=True)
class Body:
    """200 with something else."""

    body: bytes
    content_type: str = "text/html"
    headers: Mapping[str, str] = field(default_factory=dict)

    async def __call__(self, request: web.Request, answer: Answer, registry: FakeRegistry) -> web.StreamResponse:
        return web.Response(body=self.body, headers={**self.headers, "Content-Type": self.content_type})


@dataclass(frozen=True)
class Slowly:
    """The right answer, after a while."""

    seconds: float

    async def __call__(self, request: web.Request, answer: Answer, registry: FakeRegistry) -> web.StreamResponse:
        await asyncio.sleep(self.seconds)
        return await serve(request, answer, registry)


async def revoke_tokens(request: web.Request, answer: Answer, registry: FakeRegistry) -> web.StreamResponse:
    """All tokens end now; this request is the first to notice."""
    registry.revoke_tokens()
    challenge = registry._challenge(request)
    return challenge or await serve(request, answer, registry)


async def expire_links(request: web.Request, answer: Answer, registry: FakeRegistry) -> web.StreamResponse:
    """The presigned link ends now; new ones are good."""
    registry.expire_links()
    return web.Response(
        status=403, text="<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>"
    )


async def expire_links_400(request: web.Request, answer: Answer, registry: FakeRegistry) -> web.StreamResponse:
    registry.expire_links()
    return web.Response(status=400, text="<Error><Code>ExpiredToken</Code></Error>")


async def _head(request: web.Request, answer: Answer) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers=answer.headers)
    response.content_length = len(answer.body)
    await response.prepare(request)
    return response


async def _close(request: web.Request, *, reset: bool) -> None:
    transport = request.transport
    if transport is None:
        return
    if reset:
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        transport.abort()
    else:
        transport.close()
