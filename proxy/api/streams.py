"""Answers that go out in pieces: begun, they end whole or the connection is cut."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

log = logging.getLogger(__name__)

_WRITE_SECONDS = 60.0  # for a block of about 1 MiB; a reader that takes longer is gone


async def send(response: web.StreamResponse, block: bytes | bytearray) -> None:
    """Write one block. Raise ``TimeoutError`` or ``ConnectionError`` for a reader that is gone."""
    async with asyncio.timeout(_WRITE_SECONDS):
        await response.write(block)


@contextlib.asynccontextmanager
async def whole_or_cut(request: web.Request, response: web.StreamResponse) -> AsyncIterator[AbstractStreamWriter]:
    """Prepare ``response`` and give its writer. When the block fails, cut the connection: a short body must never be
    taken for whole.

    aiohttp would leave the connection open after a short body and the client waiting.
    """
    writer = await response.prepare(request)
    assert writer is not None, "prepared twice"
    try:
        yield writer
    except (ConnectionError, TimeoutError):
        _cut(request)  # the reader has left: nothing to report
    except Exception as exc:  # noqa: BLE001 - whatever it was, the answer is begun and can only be cut
        log.warning("%s %s: cut: %s", request.method, request.path, exc)
        _cut(request)
    except BaseException:
        _cut(request)
        raise


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()  # not close: no more of a wrong body should leave the buffer
