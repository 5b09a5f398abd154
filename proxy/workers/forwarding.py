"""Requests that a follower passes on to the leader, and the answers that it passes back, byte for byte."""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any, Self

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from fastpull.proxy.api.streams import whole_or_cut
from fastpull.proxy.listening import KEEPALIVE_SECONDS, MAX_HEADER_BYTES
from fastpull.proxy.mirror.sending import FileResponse
from fastpull.proxy.workers.passing import end_to_end
from fastpull.proxy.workers.refusals import refusal

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
_CONNECT_AGAIN_SECONDS = 0.05  # the socket's queue was full (unix(7): EAGAIN)
_SILENT_SECONDS = 600.0  # the leader bounds its own waits, all of them by less
_WRITE_SECONDS = 300.0  # a client that takes nothing for so long is gone, as the leader has it (``sending.py``)
_BUFFER_BYTES = 256 * 1024
_GONE = (errno.ECONNREFUSED, errno.ENOENT)
_NOT_FORWARDED = frozenset(("expect",))  # answered here with 100
_FRAMING = frozenset(("content-length",))

Heard = Callable[[int, Mapping[str, str]], None]
"""Gets status and headers of the leader's answer before they are passed back."""


class Leader:
    """The leader, as followers reach it. An async context manager.

    A body is passed on as it comes, never kept: whoever is slow slows the other side down. When the client leaves,
    the leader's connection is closed, and it sees that as it sees a client leave; a body that the leader does not
    bring to its end is cut here, too. ``gone`` is called when there is nobody at the socket any more.
    """

    def __init__(self, socket: str, gone: Callable[[], None]) -> None:
        self._socket = socket
        self._gone = gone
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(self._socket, limit=0, keepalive_timeout=KEEPALIVE_SECONDS / 3),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS, sock_read=_SILENT_SECONDS),
            read_bufsize=_BUFFER_BYTES,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def forward(
        self, request: web.Request, *, body: bytes | None = None, heard: Heard | None = None
    ) -> web.StreamResponse:
        """Pass the request on, its body out of ``body`` if that was read already; return the answer, sent."""
        async with AsyncExitStack() as stack:
            try:
                answer = await self._ask(request, body)
                stack.callback(answer.close)  # does nothing to an answer that was read to its end
            except ValueError as exc:  # of aiohttp, for what it would not send itself
                log.info("%s %s can not be passed on: %s", request.method, request.path[:200], exc)
                return web.Response(status=400, text="the request is malformed\n")
            except (aiohttp.ClientError, OSError, TimeoutError) as exc:
                log.warning("%s %s: the first process does not answer: %r", request.method, request.path[:200], exc)
                return refusal(request.path, "this proxy's first process does not answer")
            if heard is not None:
                heard(answer.status, answer.headers)
            has_body = request.method != "HEAD" and answer.status not in (204, 304)
            if has_body and (length := answer.content_length) is not None:
                return await _pass_back(request, answer, length)
            return await _pass_back_in_pieces(request, answer)

    async def _ask(self, request: web.Request, body: bytes | None) -> aiohttp.ClientResponse:
        target = request.rel_url
        url = URL.build(
            scheme="http", host="leader", path=target.raw_path, query_string=target.raw_query_string, encoded=True
        )
        data: Any = body
        if data is None and request.body_exists:
            data = request.content
        headers = end_to_end(request.headers, without=_NOT_FORWARDED)
        headers.setdefault("Host", "")  # of HTTP/1.0; the URL's host is no host
        until = asyncio.get_running_loop().time() + _CONNECT_SECONDS
        while True:
            try:
                return await self._session.request(
                    request.method, url, headers=headers, data=data, allow_redirects=False
                )
            except aiohttp.ClientConnectorError as exc:
                if exc.errno in _GONE:
                    self._gone()
                if exc.errno != errno.EAGAIN or asyncio.get_running_loop().time() > until:
                    raise
            await asyncio.sleep(_CONNECT_AGAIN_SECONDS)


async def _pass_back(request: web.Request, answer: aiohttp.ClientResponse, length: int) -> web.StreamResponse:
    """With the leader's own head: no Date or Server that it did not send."""
    response = FileResponse(answer.status, end_to_end(answer.headers, without=_FRAMING), length)
    try:
        await response.begin(request)
        while data := await answer.content.readany():
            async with asyncio.timeout(_WRITE_SECONDS):
                await response.send_bytes(data)
    except (aiohttp.ClientError, OSError, TimeoutError):
        response.cut()
    except BaseException:
        response.cut()
        raise
    return response


async def _pass_back_in_pieces(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    """The answer to HEAD, and what the leader sends without telling how long it will be."""
    headers: CIMultiDict[str] = end_to_end(answer.headers)
    response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
    async with whole_or_cut(request, response):
        try:
            while data := await answer.content.readany():
                async with asyncio.timeout(_WRITE_SECONDS):
                    await response.write(data)
        except aiohttp.ClientError as exc:
            raise ConnectionResetError("the first process cut its answer") from exc
        await response.write_eof()
    return response
