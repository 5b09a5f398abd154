"""Failures that cross the border between a worker process and the proxy."""

from __future__ import annotations

from fastpull.cache.errors import CacheError, StoreFullError, StoreVersionError
from fastpull.image import errors as image_errors
from fastpull.proxy.ingest.messages import Failed


class WorkerDiedError(ChildProcessError):
    """The process that did the work is gone (killed, out of memory). Trying again starts a new one."""


class WorkerStalledError(WorkerDiedError):
    """The process got nowhere for ``ingest.stall_seconds`` and was ended."""


class WorkerFailedError(ChildProcessError):
    """A worker met something that nobody foresaw; its log has the traceback."""


_KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind
    for kind in (
        image_errors.ImageError,
        image_errors.LayerFormatError,
        image_errors.LayerDigestError,
        image_errors.UnsafeEntryError,
        image_errors.LimitExceededError,
        image_errors.UnsupportedMediaTypeError,
        image_errors.IndexFormatError,
        CacheError,
        StoreFullError,
        StoreVersionError,
        OSError,
    )
}


def describe(request: int, exc: BaseException) -> Failed:
    """The message about a failure. A subclass that the other side does not know goes as its nearest base."""
    kind = next((base.__name__ for base in type(exc).__mro__ if base.__name__ in _KINDS), "")
    return Failed(request, kind, str(exc) or type(exc).__name__)


def is_expected(exc: BaseException) -> bool:
    """Whether the failure says all there is to say; others deserve a traceback."""
    return isinstance(exc, tuple(_KINDS.values()))


def rebuilt(failed: Failed) -> Exception:
    """The failure, as it was raised in the worker."""
    return _KINDS.get(failed.kind, WorkerFailedError)(failed.text)
