"""Messages in and out of ``/v1``: bounded, typed, timed."""

from __future__ import annotations

import asyncio
import re
from typing import TypeVar

import msgspec
from aiohttp import web

from fastpull.cache.digest import Digest
from fastpull.cache.wire import Message
from fastpull.proxy.api.errors import RequestError
from fastpull.proxy.references import Platform

T = TypeVar("T")

MAX_BODY_BYTES = 16 * 2**20
_BODY_SECONDS = 60.0  # a client that sends its body more slowly than that is cut off
_SECONDS = re.compile(r"\d{1,6}(\.\d{1,6})?")


def reply(message: Message, *, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(message), content_type="application/json")


async def read_body(request: web.Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """Raise ``RequestError`` for a body that is too long or comes too slowly."""
    if request.content_length is not None and request.content_length > limit:
        raise RequestError(f"a body of {request.content_length} bytes; at most {limit} are accepted", status=413)
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            body = await request.read()  # bounded by the application's client_max_size as well
    except TimeoutError as exc:
        raise RequestError(f"the body did not arrive within {_BODY_SECONDS:.0f} s", status=408) from exc
    if len(body) > limit:
        raise RequestError(f"a body of more than {limit} bytes", status=413)
    return body


async def read_message(request: web.Request, kind: type[T]) -> T:
    """Raise ``RequestError`` for a body that is none of that kind."""
    try:
        return msgspec.json.decode(await read_body(request), type=kind)
    except msgspec.DecodeError as exc:
        raise RequestError(f"the body is no {kind.__name__}: {exc}") from exc


def chain_of(request: web.Request) -> str:
    """The chainID in the path, well formed. Raise ``MalformedDigestError``."""
    return str(Digest.parse(request.match_info["chain"]))


def seconds_of(request: web.Request, name: str, most: float) -> float:
    """A duration in the query, 0 when absent, cut to ``most``. Raise ``RequestError``."""
    text = request.query.get(name, "0")
    if _SECONDS.fullmatch(text) is None:
        raise RequestError(f"{name}={text[:40]!r} is no number of seconds")
    return min(float(text), most)


def platform_of(text: str) -> Platform | None:
    """Raise ``MalformedNameError``."""
    return Platform.parse(text) if text else None


def required(request: web.Request, name: str) -> str:
    value = request.query.get(name, "")
    if not value:
        raise RequestError(f"the query lacks {name}=…")
    return value
