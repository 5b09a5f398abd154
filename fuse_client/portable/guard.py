"""A request of the kernel is always answered."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from fastpull.fuse_client.portable.errors import DaemonAwayError, ReadRefusedError
from fastpull.fuse_client.portable.library import pyfuse3

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

GUARDED = "__fastpull_guarded__"
"""The attribute that guarded handlers have, for the test that looks for it."""


def answered(handler: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Turn every failure of a FUSE handler into an errno.

    pyfuse3 answers the kernel only for FUSEError. Any other exception ends the worker task with the request
    open, and the caller's system call never returns.
    """

    @functools.wraps(handler)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Exception as exc:
            raise pyfuse3.FUSEError(_errno_of(handler, exc)) from exc

    setattr(wrapper, GUARDED, True)
    return wrapper


def unanswered(handler: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, Coroutine[Any, Any, None]]:
    """For what the kernel only tells (FORGET): nothing at all leaves it."""

    @functools.wraps(handler)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            await handler(*args, **kwargs)
        except Exception as exc:  # noqa: BLE001 - nobody waits for an answer; the log has it
            _errno_of(handler, exc)

    setattr(wrapper, GUARDED, True)
    return wrapper


def _errno_of(handler: Callable[..., object], exc: Exception) -> int:
    match exc:
        case ReadRefusedError():
            log.debug("%s: %s", handler.__qualname__, exc)  # the daemon's log says why
            return exc.code
        case DaemonAwayError():
            log.warning("%s: %s", handler.__qualname__, exc)
        case _:
            log.error("%s failed", handler.__qualname__, exc_info=exc)
    return errno.EIO
