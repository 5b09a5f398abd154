"""The human part of an upstream's error answer."""

from __future__ import annotations

import asyncio

import aiohttp
import msgspec

from fastpull.proxy.upstream.foreign_json import read_json

_MAX_BODY = 16 * 1024
_MAX_TEXT = 300
_TIMEOUT_SECONDS = 5.0


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error] = []


def read_detail(body: bytes) -> str:
    """The first error of an OCI error body, printable and short; empty for anything else. Pure."""
    found = read_json(body, _Errors) or _Errors()
    text = ": ".join(part for error in found.errors[:1] for part in (error.code, error.message) if part)
    return "".join(c if c.isprintable() else " " for c in text[:_MAX_TEXT])


async def error_detail(response: aiohttp.ClientResponse) -> str:
    """Never raises: an error whose text is cut is still that error."""
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            return read_detail(await response.content.read(_MAX_BODY))
    except (aiohttp.ClientError, TimeoutError, OSError):
        return ""
